"""The report of a run: whole, honest about what is missing, and harmless whatever a model wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from acorn.recipe import Recipe, load_recipe
from acorn.report import write_report
from acorn.report.layers import lay_out
from acorn.report.scales import scale_over, smoothed, spread, thinned, wilson
from registry import Artifact, Registry
from tests.acorn.report_world import HOSTILE, make_recipe, make_run

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.markup = path.read_text()
        self.elements: list[tuple[str, Attributes]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(self.markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"unbalanced </{tag}>"

    def handle_data(self, data: str) -> None:
        place = {"script": self.scripts, "style": self.styles}.get(self._open[-1] if self._open else "", self.texts)
        place.append(data)

    def all(self, tag: str) -> list[Attributes]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Artifact], Recipe, Registry]:
    """The report of a whole run, and the artifacts it shows."""
    folder = tmp_path_factory.mktemp("report")
    recipe, registry = make_recipe(folder), Registry(folder / "home")
    made = make_run(recipe, registry)
    return Page(write_report(recipe, registry, folder / "report.html")), made, recipe, registry


def test_every_step_appears_with_its_key_and_a_box_that_leads_to_its_record(drawn) -> None:
    page, made, recipe, _ = drawn
    links = {attributes.get("href") for attributes in page.all("a")}
    records = {attributes.get("id") for attributes in page.all("details")}
    assert set(made) == set(recipe.steps)
    for step, artifact in made.items():
        assert artifact.key in page.text
        assert f"#step-{step}" in links and f"step-{step}" in records


def test_what_a_model_wrote_is_text_and_never_markup(drawn) -> None:
    page = drawn[0]
    assert page.text.count(HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")) == 1  # unescaped once: it is text
    assert len(page.all("script")) == 1 and "alert" not in page.scripts[0]
    assert not page.all("img") and not page.all("b onerror")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_page_asks_for_nothing_and_its_policy_forbids_it_to(drawn) -> None:
    page = drawn[0]
    assert {attributes["href"][:1] for attributes in page.all("a")} == {"#"}
    assert not [a for _, a in page.elements if {"src", "srcset", "style", "action"} & a.keys()] and not page.all("link")
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp", "".join(page.styles + page.scripts))
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';")
    for content in (page.styles[0], page.scripts[0]):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_curves_hold_the_logged_points(drawn) -> None:
    page, made, *_ = drawn
    shown = [json.loads(a["data-points"]) for a in page.all("polyline") if a.get("data-name") == "train"]
    for step in ("base", "sft", "dpo"):
        lines = map(json.loads, (made[step].path / "logs" / "metrics.jsonl").read_text().splitlines())
        logged = [[line["step"], pytest.approx(line["train/loss"], rel=1e-5)] for line in lines if "train/loss" in line]
        assert logged in shown


def test_the_headline_tells_size_accuracy_cost_and_answer(drawn) -> None:
    text = drawn[0].text.replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "866 k parameters",
        "14.9 M tokens",
        "17 min 02 s",
        "84.8 %",
        "990 kB",
        "The exported f16 file answers",
    ):
        assert words in text


def test_searches_are_drawn_over_tokens_beside_the_larger_models_answer_and_held_against_it(drawn) -> None:
    page, made, *_ = drawn
    rows = json.loads((made["search"].path / "results.json").read_text())["methods"]
    shown = {(a["data-name"], a["data-points"]) for a in page.all("polyline") if a.get("data-name")}
    for level in (None, 1, 5):
        votes = [row for row in rows if (row["method"], row["level"]) == ("majority", level)]
        points = json.dumps([[row["tokens"], float(f"{row['mean']:.6g}")] for row in votes], separators=(",", ":"))
        assert ("majority", points) in shown
    larger = [{y for _, y in json.loads(points)} for name, points in shown if name == "dpo"]
    assert len(larger) >= 2 and all(len(heights) == 1 for heights in larger), "one answer is a level line"
    for words in ("Against large, greedy", "+28.0", "[22.0, 34.0]", "What thinking longer brings", "Compute-optimal"):
        assert words in page.text


def test_a_partial_run_shows_what_is_there_and_names_what_is_not(tmp_path: Path) -> None:
    recipe, registry = make_recipe(tmp_path), Registry(tmp_path / "home")
    for built in (None, "base", "pairs"):
        made = make_run(recipe, registry, until=built) if built else {}
        page = Page(write_report(recipe, registry, tmp_path / "report.html"))
        assert f"{len(made)} of {len(recipe.steps)} steps are built" in page.text
        assert all(artifact.key in page.text for artifact in made.values())
        assert page.text.count("not built") >= 2 * (len(recipe.steps) - len(made))


def test_an_artifact_older_than_the_recipe_is_marked(drawn, tmp_path: Path) -> None:
    _, _, recipe, registry = drawn
    changed = load_recipe(recipe.path, ["tokenizer.vocab_size=600"])
    text = Page(write_report(changed, registry, tmp_path / "report.html")).text
    assert "The recipe has changed since: vocab_size 512 → 600" in text
    assert "tokenizer, which it needs, is to be built again first" in text


def test_a_diverged_run_is_drawn_and_its_losses_counted(tmp_path: Path) -> None:
    recipe, registry = make_recipe(tmp_path), Registry(tmp_path / "home")
    make_run(recipe, registry, until="base", losses={"base": [3.0, 2.0, float("inf"), float("nan")]})
    page = Page(write_report(recipe, registry, tmp_path / "report.html"))
    assert "2 of 4 values are NaN or infinite" in page.text
    assert not re.search(r"(points|x1|y1|d)=\"[^\"]*(nan|inf)", page.markup)


def test_boxes_and_lanes_of_one_column_do_not_overlap() -> None:
    needs = {"a": [], "b": ["a"], "c": ["a"], "d": ["a", "b"], "e": ["d", "c"], "f": ["e", "a", "b", "c"], "g": ["a"]}
    layout = lay_out(needs, box=60, lane=8, gap=10)
    size = {node: 60 if layout.column[node[0]] == node[1] else 8 for node in layout.heights}
    for one, other in combinations(layout.heights, 2):
        if one[1] == other[1]:
            apart = abs(layout.heights[one] - layout.heights[other])
            assert apart >= (size[one] + size[other]) / 2 + 10 - 1e-6
    assert all(layout.column[source] < layout.column[name] for name, sources in needs.items() for source in sources)


CURVES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=400).map(
    lambda ys: [(float(x), y) for x, y in enumerate(ys)]
)


@given(CURVES)
def test_thinning_keeps_both_ends_and_every_extreme(points: list[tuple[float, float]]) -> None:
    kept = thinned(points, 20)
    heights = [y for _, y in points]
    assert len(kept) <= 20 and kept[0] == points[0] and kept[-1] == points[-1] and set(kept) <= set(points)
    assert {min(heights), max(heights)} <= {y for _, y in kept}


def test_smoothing_a_straight_line_does_not_lag() -> None:
    line = [(float(x), 100.0 - x) for x in range(100)]
    assert smoothed(line)[:90] == [pytest.approx(point) for point in line[:90]]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans())
@example(1e6, 999999.9999999999, False)
@example(1e6, 999999.9999999999, True)
@example(1e-6, 1.0001e-6, False)
def test_ticks_lie_on_the_axis_and_there_are_at_least_two(one: float, other: float, log: bool) -> None:
    scale = scale_over([one, other], 0.0, 100.0, log=log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 9 and all(0 <= scale(tick) <= 100 for tick in ticks) and ticks == sorted(set(ticks))


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    assert spread([50.0, 51.0, 10.0], 14, 0, 100) == [50.0, 64.0, 10.0]
    assert spread([99.0, 99.0], 14, 0, 100) == [86.0, 100.0]


def test_intervals_stay_within_zero_and_one_and_match_wilson() -> None:
    assert wilson(1.0, 100) == (pytest.approx(0.963, abs=1e-3), pytest.approx(1.0))
    assert wilson(0.5, 100) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))
