"""Stage `magpie`: conversations out of a chat model alone, by distilabel's Magpie (Xu et al. 2024, arXiv:2406.08464).

The model gets its system prompt and the opening of a user's turn, and writes what a user would; then it answers. So
the rows are as varied as what the model was aligned on, and as right as it is: filter them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from acorn.stage import Job
from synth.making import Task, make, provenance
from synth.making_config import MagpieConfig, pre_query
from synth.shards import Row


def run(job: Job) -> dict[str, float]:
    """Make the rows. Raises what `synth.making.make` raises."""
    config: MagpieConfig = job.config

    def ask(shard: Sequence[Row], llm: Any) -> list[dict[str, Any]]:
        from synth.distilabel import magpie

        asked: list[Row] = [{key: row[key] for key in ("id", "system_prompt") if key in row} for row in shard]
        return magpie(asked, llm, config.n_turns, job.scratch, job.execution.ray)

    def rows_of(prompt: Row, answers: list[Row]) -> list[Row]:
        return [_row(job, prompt, answer) for answer in answers]

    # A conversation is one prompt of `2 * n_turns` generations; the budget counts those.
    return make(job, Task(_prompts(config), 2 * config.n_turns, ask, rows_of, llm=pre_query(config.llm)))


def _prompts(config: MagpieConfig) -> list[Row]:
    names = list(config.categories)
    weights = [config.categories[name].weight for name in names]
    prompts = []
    for number in range(config.rows):
        row: Row = {"id": f"magpie-{number:06d}", "category": "magpie"}
        if names:
            row["category"] = Random(f"magpie:{config.seed}:{number}").choices(names, weights)[0]
            row["system_prompt"] = config.categories[row["category"]].system_prompt
        prompts.append(row)
    return prompts


def _row(job: Job, prompt: Row, answer: Mapping[str, Any]) -> Row:
    config: MagpieConfig = job.config
    turns = [{"role": turn["role"], "content": (turn["content"] or "").strip()} for turn in answer["conversation"]]
    system = [{"role": "system", "content": prompt["system_prompt"]}] if "system_prompt" in prompt else []
    row: Row = {
        "id": prompt["id"],
        "messages": (system if config.keep_system_prompt else []) + turns,
        "source": prompt["category"],
        "level": 0,
        **provenance(job, None),
    }
    reason = _reason(turns, answer, config.n_turns)
    return row if reason is None else row | {"reason": reason}


def _reason(turns: list[dict[str, str]], answer: Mapping[str, Any], n_turns: int) -> str | None:
    if answer.get("failure"):
        return str(answer["failure"])
    if any(not turn["content"] for turn in turns):
        return "empty"
    if not answer["finished"]:
        return "unfinished"
    return None if [turn["role"] for turn in turns] == ["user", "assistant"] * n_turns else "incomplete"
