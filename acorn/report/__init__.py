"""`acorn report`: a run of a recipe as one HTML page.

The page holds everything: its style, a script of a few lines for the pointer, all drawings as SVG. It asks for nothing
over the network and its content policy forbids it to, so it can be mailed, archived and opened in ten years. What
models wrote is untrusted: it is escaped (`markup`), and the policy lets no other script run.
"""

from __future__ import annotations

from pathlib import Path

from acorn.recipe import Recipe
from acorn.report.chain import chain
from acorn.report.curves import curves
from acorn.report.data import data
from acorn.report.effects import effects
from acorn.report.evaluation import Results, read_results, role_legend, scores
from acorn.report.exports import exports
from acorn.report.headline import headline
from acorn.report.ledger import ledger
from acorn.report.markup import Html, join, tag
from acorn.report.page import mark, page, write_page
from acorn.report.read import Run, read_run
from acorn.report.records import records
from acorn.report.samples import samples
from acorn.report.thinking import thinking
from registry import Registry

__all__ = ["write_report"]

_CHAIN_LEAD = "Each box is an artifact in the registry. Point at one for details, follow it for its record."
_THINKING_LEAD = "Tokens generated and scored for one problem, against the share of problems solved."
_EFFECTS_LEAD = "Each model against the one that it was made from, on the same items."
_ANSWERS_LEAD = "The same questions to every model. The first step that does not add up is marked."


def write_report(recipe: Recipe, registry: Registry, path: Path) -> Path:
    """Draw the newest artifacts under `recipe`'s names into one HTML file at `path`, and return `path`.

    Steps that are not built are shown as such. Raises RegistryError if an artifact is damaged, ValueError naming a
    file in one that is malformed.
    """
    return write_page(render(read_run(recipe, registry)), path)


def render(run: Run) -> str:
    """The page's text."""
    results = read_results(run)
    sections = [
        _section("chain", "How it was made", _CHAIN_LEAD, chain(run)),
        _section("scores", "How good it is", "", scores(run)),
        _section("effects", "What each stage did", _EFFECTS_LEAD, _effects(run, results)),
        _section("thinking", "What thinking longer brings", _THINKING_LEAD, thinking(run)),
        _section("answers", "What they answered", _ANSWERS_LEAD, _answers(run, results)),
        _section("training", "How it learned", "", curves(run)),
        _section("data", "What it learned from", "", data(run)),
        _section("export", "What runs on a laptop", "", exports(run)),
        _section("cost", "What it cost", "", ledger(run)),
        _section("records", "Where everything came from", _origin(run), records(run)),
    ]  # fmt: skip
    shown = [section for section in sections if section is not None]
    main = tag("main", headline(run, results[0] if results else None), *(html for *_, html in shown))
    return page(f"{run.recipe.name}: acorn run report", _navigation(shown), main, _foot(run))


def _effects(run: Run, results: list[Results]) -> Html | None:
    """The effects of every evaluation that asked a model and what it was made from."""
    found = [drawn for one in results if (drawn := effects(run, one))]
    return join(found) if found else None


def _answers(run: Run, results: list[Results]) -> Html | None:
    """Sample problems of every evaluation that kept some."""
    found = [(one, drawn) for one in results if (drawn := samples(run, one))]
    return join(part for one, drawn in found for part in (role_legend(one), drawn)) if found else None


def _section(name: str, title: str, lead: Html | str, content: Html | None) -> tuple[str, str, Html] | None:
    """Name, title and markup; None where the recipe has nothing to show there."""
    if content is None:
        return None
    head = [tag("h2", title), tag("p", lead, class_="lead") if lead else None]
    return name, title, tag("section", *head, content, id=name)


def _navigation(sections: list[tuple[str, str, Html]]) -> Html:
    home = tag("a", mark(), "acorn", href="#", class_="mark")
    return tag("nav", home, *(tag("a", name, href=f"#{name}") for name, *_ in sections))


def _origin(run: Run) -> Html:
    command = tag("code", f"acorn run {run.recipe.path}")
    return join([command, f" builds what is missing. Equal config and inputs give equal keys. {run.note}"])


def _foot(run: Run) -> Html:
    newest = max((made.artifact.manifest.created for made in run.built() if made.artifact), default="")
    return tag("footer", f"{run.recipe.name}, drawn by acorn report. Newest artifact: {newest or 'none'}.")
