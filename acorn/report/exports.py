"""The exported files: how small, how true to the model they came from; and everything they were asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acorn.report.charts import bar
from acorn.report.evaluation import missing
from acorn.report.headline import conversation
from acorn.report.markup import NONE, Html, figure, head_number, join, number, percent, size, table, tag
from acorn.report.read import Made, Run, read_log


def exports(run: Run) -> Html | None:
    """Each GGUF export, then the conversations with it."""
    found = [*run.of_kind("gguf"), *run.of_kind("transcript")]
    if not found:
        return None
    return join(
        missing([made]) if made.artifact is None else _gguf(made) if made.kind == "gguf" else _transcript(made)
        for made in found
    )


def _gguf(made: Made) -> Html:
    sheet: Mapping[str, Any] = (made.json("export.json") or {}).get("types", {})
    proof: Mapping[str, Any] = made.json("parity.json") or {}
    speed = read_log(made).figures
    largest = max((entry["bytes"] for entry in sheet.values()), default=1)
    head = [
        "type",
        head_number("size"),
        "",
        *map(head_number, ("bits / weight", "mean KL", "worst KL", "same top-1", "greedy equal", "tokens / s")),
        "tensors",
    ]
    rows = [_type(kind, entry, proof.get("types", {}).get(kind, {}), speed, largest) for kind, entry in sheet.items()]
    return join([tag("h3", made.name), table(head, rows), tag("p", *_proof(proof), class_="caption")])


def _type(
    kind: str, entry: Mapping[str, Any], proof: Mapping[str, Any], speed: Mapping[str, float], largest: int
) -> list[Html]:
    greedy = proof.get("greedy", {})
    tensors = ", ".join(f"{amount} {name}" for name, amount in entry.get("tensor_types", {}).items())
    rate = speed.get(f"export/{kind}/tokens_per_second")
    return [
        tag("td", kind, class_="strong"),
        number(size(entry["bytes"])),
        tag("td", bar(entry["bytes"] / largest, 1), class_="wide"),
        number(f"{entry['bits_per_weight']:.2f}"),
        number(_nats(proof.get("kl"))),
        number(_nats(proof.get("kl_worst"))),
        number(percent(proof["top1"]) if "top1" in proof else NONE),
        number(f"{greedy['equal']} / {greedy['prompts']}" if greedy else NONE),
        number(f"{rate:,.0f}" if rate else NONE),
        tag("td", tensors, class_="muted"),
    ]


def _nats(value: float | None) -> str:
    return NONE if value is None else figure(value)


def _proof(proof: Mapping[str, Any]) -> list[str]:
    """What was compared, in words."""
    words = []
    if tokenizer := proof.get("tokenizer"):
        words.append(
            f"llama.cpp splits {tokenizer['strings']:,} hard strings into the same tokens as the model's tokenizer. "
        )
    if hostile := proof.get("adversary"):
        words.append(
            f"So it does over a vocabulary whose merges cross what the pre-tokenizer splits"
            f"{f', with {count:,} code points' if (count := hostile['code_points']) else ''}. "
        )
    if template := proof.get("template"):
        words.append(f"The chat template renders {template['conversations']} conversations alike. ")
    if positions := next((entry.get("positions") for entry in proof.get("types", {}).values()), None):
        words.append(f"KL is in nats against the model in fp32, over {positions:,} held-out positions.")
    return words


def _transcript(made: Made) -> Html:
    rows = made.rows("transcript.jsonl")
    talks = (tag("div", conversation(row), class_="card") for row in rows)
    return join(
        [
            tag("h3", made.name, tag("small", f"{len(rows)} conversations with the exported file")),
            tag("div", *talks, class_="rows"),
        ]
    )
