"""What the models learned from: documents, tokens, and the synthetic rows with those that were thrown out, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acorn.report.charts import bar, stack
from acorn.report.evaluation import missing
from acorn.report.headline import conversation
from acorn.report.markup import NONE, Html, count, head_number, join, number, percent, size, table, tag
from acorn.report.read import Made, Row, Run

GOOD, BAD = 8, 9
"""Palette numbers."""
ROWS_SHOWN = 3
REJECTED_SHOWN = 4


def data(run: Run) -> Html | None:
    """Corpora and tokens, then each synthetic data set."""
    kinds = {"corpus": _corpus, "tokens": _tokens, "chat": _synthetic, "preferences": _synthetic}
    made = [one for kind in kinds for one in run.of_kind(kind)]
    if not made:
        return None
    return join(_block(one, kinds[one.kind](one) if one.artifact else missing([one])) for one in made)


def _block(made: Made, *content: Html) -> Html:
    return tag("div", tag("h3", made.name, tag("small", made.step.stage.name)), *content, class_="block")


def _corpus(made: Made) -> Html:
    stats: Mapping[str, Any] = made.json("stats.json") or {}
    documents, characters = stats.get("documents", {}), stats.get("characters", {})
    parts = []
    if train := documents.get("train"):
        parts.append(stack([(name, amount, index % 8) for index, (name, amount) in enumerate(train.items(), start=4)]))
    cells = [
        ("train", documents, "train documents"),
        ("train", characters, "characters"),
        ("validation", documents, "held out"),
    ]
    head = ["source", *(head_number(name) for *_, name in cells)]
    sources = dict.fromkeys(source for counts in documents.values() for source in counts)
    rows = [
        [source, *(number(count(what.get(part, {}).get(source, 0))) for part, what, _ in cells)] for source in sources
    ]
    tables = [table(head, rows)] if rows else []
    if problems := stats.get("problems"):
        tables.append(_levels(problems))
    return join([*parts, tag("div", *tables, class_="columns"), _documents(made)])


def _levels(problems: Mapping[str, Mapping[str, int]]) -> Html:
    levels = sorted({level for counts in problems.values() for level in counts})
    head = ["problems", *(head_number(f"level {level}") for level in levels), head_number("all")]
    rows = [
        [part, *(number(f"{counts.get(level, 0):,}") for level in levels), number(f"{sum(counts.values()):,}")]
        for part, counts in problems.items()
    ]
    return table(head, rows)


def _documents(made: Made) -> Html | None:
    """The first document of each source, as the models read it."""
    shards = sorted(made.artifact.path.glob("train/*.jsonl")) if made.artifact else []
    found: dict[str, str] = {}
    for row in made.rows(f"train/{shards[0].name}", 200) if shards else []:
        found.setdefault(str(row.get("source", "")), str(row.get("text", "")))
    if not found:
        return None
    texts = (
        tag("div", tag("span", source, class_="who"), tag("pre", _cut(text, 420))) for source, text in found.items()
    )
    return tag("details", tag("summary", "One document of each source"), tag("div", *texts, class_="texts"))


def _tokens(made: Made) -> Html:
    meta: Mapping[str, Any] = made.json("meta.json") or {}
    parts = []
    for part in ("train", "validation"):
        tokens, octets = meta.get(f"{part}_tokens"), meta.get(f"{part}_bytes")
        if tokens is not None:
            rate = f"{octets / tokens:.2f}" if octets and tokens else NONE
            parts.append([part, number(f"{tokens:,}"), number(size(octets) if octets else NONE), number(rate)])
    head = ["part", head_number("tokens"), head_number("text"), head_number("bytes per token")]
    vocabulary = (
        tag("p", f"{meta['vocab_size']:,} entries, stored as {meta.get('dtype')}.", class_="caption")
        if "vocab_size" in meta
        else None
    )
    return tag("div", table(head, parts), vocabulary, class_="narrow")


def _synthetic(made: Made) -> Html:
    stats: Mapping[str, Any] = made.json("stats.json") or {}
    reasons: Mapping[str, int] = stats.get("rejected") or {}
    kept, rejected = int(stats.get("kept", 0)), sum(reasons.values())
    parts = [stack([("kept", kept, GOOD), ("rejected", rejected, BAD)])]
    tables = [_reasons(reasons, rejected)] if reasons else []
    if rates := stats.get("pass_rate_by_level"):
        tables.append(_pass_rates(rates, stats))
    parts.append(tag("div", *tables, class_="columns"))
    parts.append(_examples(made))
    return join(parts)


def _reasons(reasons: Mapping[str, int], rejected: int) -> Html:
    rows = [
        [reason.replace("_", " "), number(f"{amount:,}"), tag("td", bar(amount / max(1, rejected), BAD))]
        for reason, amount in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    return table(["rejected because", head_number("rows"), ""], rows)


def _pass_rates(rates: Mapping[str, float], stats: Mapping[str, Any]) -> Html:
    rows = [[f"level {level}", number(percent(rate)), tag("td", bar(rate, GOOD))] for level, rate in rates.items()]
    whole = [tag("td", "all"), number(percent(stats["pass_rate"])), tag("td", bar(stats["pass_rate"], GOOD))]
    return table(["answers that pass", head_number("share"), ""], rows, whole if "pass_rate" in stats else None)


def _examples(made: Made) -> Html:
    kept = made.rows("train.jsonl", ROWS_SHOWN)
    thrown: list[Row] = []
    for row in made.rows("rejected.jsonl", 2000):  # one of each reason
        if len(thrown) < REJECTED_SHOWN and row.get("reason") not in {other.get("reason") for other in thrown}:
            thrown.append(row)
    parts = [tag("div", *(_row(row) for row in (*kept, *thrown)), class_="rows")]
    return tag("details", tag("summary", f"Examples: {len(kept)} kept, {len(thrown)} rejected"), *parts)


def _row(row: Row) -> Html:
    reason = row.get("reason")
    facts = [
        str(row[name]) if name != "level" else f"level {row[name]}" for name in ("id", "source", "level") if name in row
    ]
    verdict = (
        tag("span", f"✗ {str(reason).replace('_', ' ')}", class_="verdict wrong")
        if reason
        else tag("span", "✓ kept", class_="verdict right")
    )
    head = tag("p", tag("span", " · ".join(facts), class_="who"), verdict)
    return tag("div", head, _messages(row), class_="card")


def _messages(row: Row) -> Html:
    """A conversation; of a preference pair the prompt and both answers; of a refused prompt what was sampled."""
    if "messages" in row:
        return conversation({"messages": [_short(message) for message in row["messages"]]})
    talk = [_short(message) for message in row.get("prompt", [])]
    for name in ("chosen", "rejected"):
        talk += [{"role": name, "content": _cut(str(m["content"]), 400)} for m in row.get(name, [])]
    talk += [{"role": "sampled", "content": _cut(str(text), 300)} for text in row.get("samples", [])[:1]]
    return conversation({"messages": talk})


def _short(message: Mapping[str, Any]) -> dict[str, str]:
    return {"role": str(message["role"]), "content": _cut(str(message["content"]), 600)}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
