"""Stage `constraints`: instructions with conditions that a program checks, and answers that keep all of them.

An instruction gets one to three conditions (`synth.conditions`) behind it; an LLM answers; the program decides. So a
row is right in form beyond doubt, and says nothing about whether its content is: use the filters' tags for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from acorn.stage import Job
from synth.conditions import broken, draw, say
from synth.curate import normalise
from synth.making import Task, make, provenance, readable
from synth.making_config import ConstraintsConfig
from synth.shards import Row, read_jsonl


def run(job: Job) -> dict[str, float]:
    """Make the rows. Raises FileNotFoundError without instructions, and what `synth.making.make` raises."""
    config: ConstraintsConfig = job.config

    def ask(shard: Sequence[Row], llm: Any) -> list[Any]:
        from synth.distilabel import generate

        return list(generate(shard, llm, config.num_generations, job.scratch, job.execution.ray))

    def rows_of(prompt: Row, answers: list[Row]) -> list[Row]:
        rows: list[Row] = []
        for number, answer in enumerate(answers):
            row = _row(job, prompt, answer, number)
            if "reason" not in row and any("reason" not in other for other in rows):
                row["reason"] = "another_kept"
            rows.append(row)
        return rows

    return make(job, Task(_prompts(job, config), config.num_generations, ask, rows_of))


def _prompts(job: Job, config: ConstraintsConfig) -> list[Row]:
    instructions = _instructions(job, config)
    if config.limit is not None and config.limit < len(instructions):
        instructions = Random(f"instructions:{config.seed}").sample(instructions, config.limit)
    prompts = []
    for parent, text in instructions:
        conditions = draw(Random(f"conditions:{config.seed}:{text}"), config.most, config.kinds)
        question = f"{text}\n\n{say(conditions)}"
        prompt: Row = {"id": f"constraints-{parent}", "messages": [{"role": "user", "content": question}]}
        prompts.append(prompt | {"parent": parent, "conditions": conditions})
    return prompts


def _instructions(job: Job, config: ConstraintsConfig) -> list[tuple[str, str]]:
    """Ids and texts of different instructions: lines of the file, or first turns of the `prompts` input."""
    if config.instructions is not None:
        lines = Path(config.instructions).expanduser().read_text(encoding="utf-8").splitlines()
        found = [(f"{number:06d}", line.strip()) for number, line in enumerate(lines)]
    elif "prompts" in job.inputs:
        rows = read_jsonl(job.inputs["prompts"] / "train.jsonl")
        found = [(str(row["id"]), _first_turn(row)) for row in rows]
    else:
        raise FileNotFoundError("there are no instructions: name a file under `instructions`, or a `prompts` input")
    different: dict[str, tuple[str, str]] = {}
    for name, text in found:
        if text:
            different.setdefault(normalise(text), (name, text))
    return list(different.values())


def _first_turn(row: Row) -> str:
    return next((str(turn["content"]).strip() for turn in row["messages"] if turn["role"] == "user"), "")


def _row(job: Job, prompt: Row, answer: Row, number: int) -> Row:
    text = (answer["text"] or "").strip()
    row: Row = {
        "id": f"{prompt['id']}-{number}",
        "messages": [*prompt["messages"], {"role": "assistant", "content": text}],
        "source": "constraints",
        "level": len(prompt["conditions"]),
        "conditions": prompt["conditions"],
        **provenance(job, prompt["parent"]),
    }
    if reason := readable(answer):
        return row | {"reason": reason}
    if failed := broken(text, prompt["conditions"]):
        return row | {"reason": f"broken_{failed[0]}", "broken": failed}
    return row
