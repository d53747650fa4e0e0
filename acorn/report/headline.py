"""The top of the page: what the run made, in one sentence, a few figures and one answer."""

from __future__ import annotations

from acorn.report.evaluation import PROBLEMS, Results, Score, main_score
from acorn.report.markup import Html, count, duration, flops, join, percent, size, tag
from acorn.report.read import Made, Row, Run, parameters

_SIDES = {"user": "me", "chosen": "it good", "rejected": "it bad"}


def headline(run: Run, results: Results | None) -> Html:
    """Title, sentence, figures; then the first answer of the exported model."""
    final = final_model(run)
    built, steps = len(run.built()), len(run.made)
    state = None if built == steps else tag("p", f"{built} of {steps} steps are built so far.", class_="state")
    title = [
        tag("p", "acorn run report", class_="over"),
        tag("h1", run.recipe.name),
        tag("p", _sentence(run, final, results), class_="lead"),
        state,
    ]
    tiles = tag("div", *_tiles(run, final, results), class_="tiles")
    return tag("header", tag("div", *title, tiles, class_="claim"), _answer(run), class_="headline")


def final_model(run: Run) -> Made | None:
    """The model that is exported; where none is, the last of the chain that is built."""
    exported = [run.made.get(made.step.inputs["model"]) for made in run.of_kind("gguf")]
    models = [made for made in (*run.of_kind("model"), *exported) if made and made.artifact]
    return models[-1] if models else None


def _sentence(run: Run, final: Made | None, results: Results | None) -> Html:
    if final is None:
        return join(["No model has been built yet." if run.of_kind("model") else "This recipe makes no model."])
    total = parameters(final)
    parts: list[object] = ["A language model of ", tag("b", f"{count(total)} parameters") if total else "unknown size"]
    trained = sum(made.figure("tokens") or 0.0 for made in run.of_kind("model"))
    if trained:
        parts += [", trained on ", tag("b", f"{count(trained)} tokens")]
    parts += [" in ", tag("b", duration(_seconds(run)))]
    if results and (score := main_score(results)):
        reached = tag("b", percent(_reached(score, final, results)))
        solved = [f". Of {score.n:,} held-out problems it solves ", reached]
        parts += solved if score.task == PROBLEMS else [". Its score is ", reached, f" on {score.label}"]
    files = [made for made in run.of_kind("gguf") if made.artifact]
    if files and (types := files[-1].json("export.json")):
        smallest = min(types["types"].values(), key=lambda entry: entry["bytes"])
        parts += [". As GGUF it is ", tag("b", size(smallest["bytes"])), " and runs on a laptop"]
    return join([*parts, "."])


def _reached(score: Score, final: Made, results: Results) -> float:
    """The score of the final model; of the last one asked, where the evaluation does not name it."""
    own = [value for role, value, _ in score.values if results.made.step.inputs.get(role) == final.name]
    return own[0] if own else score.values[-1][1]


def _tiles(run: Run, final: Made | None, results: Results | None) -> list[Html]:
    tiles = []
    if results and (score := main_score(results)):
        tiles.append(_tile(f"{score.label}", _climb(score.values), wide=True))
    if final and (total := parameters(final)):
        tiles.append(_tile("parameters", count(total)))
    trained = sum(made.figure("tokens") or 0.0 for made in run.of_kind("model"))
    if trained:
        tiles.append(_tile("tokens trained on", count(trained)))
    if run.built():
        tiles.append(_tile("total time", duration(_seconds(run))))
    if work := sum(made.figure("flops") or 0.0 for made in run.built()):
        tiles.append(_tile("compute", f"{flops(work)}FLOP"))
    return tiles


def _tile(name: str, value: object, wide: bool = False) -> Html:
    return tag("div", tag("dt", name), tag("dd", value), class_="tile wide" if wide else "tile")


def _climb(values: list[tuple[str, float, int]]) -> Html:
    """`base 31.0 % → sft 78.2 % → dpo 81.4 %`, each in its model's colour."""
    parts: list[Html] = []
    for role, value, colour in values:
        if parts:
            parts.append(tag("span", "→", class_="to"))
        parts.append(tag("span", tag("small", role, class_=f"ink c{colour}"), percent(value), class_="stage"))
    return tag("span", *parts, class_="climb")


def _seconds(run: Run) -> float:
    return sum(made.figure("seconds") or 0.0 for made in run.built())


def _answer(run: Run) -> Html | None:
    """The first conversation with the exported file; None while there is none."""
    for made in run.of_kind("transcript"):
        if rows := made.rows("transcript.jsonl", 1):
            return tag(
                "div", conversation(rows[0]), tag("p", _caption(run, made, rows[0]), class_="caption"), class_="answer"
            )
    return None


def _caption(run: Run, made: Made, row: Row) -> str:
    source = run.made.get(made.step.inputs.get("gguf", ""))
    kind = getattr(made.step.identity, "type", None)
    if kind is None and source and (sheet := source.json("export.json")):
        kind = next(iter(sheet["types"]), None)
    tokens = row.get("usage", {}).get("completion_tokens")
    ended = "" if row.get("finish_reason") == "stop" else f", cut off ({row.get('finish_reason')})"
    return (
        f"The exported {kind or 'GGUF'} file answers through llama.cpp{f': {tokens} tokens' if tokens else ''}{ended}."
    )


def conversation(row: Row) -> Html:
    """Messages as chat bubbles."""
    bubbles = (
        tag(
            "div",
            tag("span", message["role"], class_="who"),
            tag("p", message["content"].strip() or "(nothing)"),
            class_=f"bubble {_SIDES.get(message['role'], 'it')}",
        )
        for message in row["messages"]
    )
    return tag("div", *bubbles, class_="chat")
