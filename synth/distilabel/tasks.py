"""distilabel's tasks at work: chat, text from a template, Magpie, a judge, a reward model, near-duplicates.

Each function is one pipeline over one shard. An answer comes back as a `Generation`, whatever the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from distilabel.pipeline import Pipeline
from distilabel.steps import MinHashDedup
from distilabel.steps.tasks import ChatGeneration, TextGeneration, UltraFeedback

from synth.distilabel.asked import AskedLLM
from synth.distilabel.pipeline import execute
from synth.distilabel.server import ServerLLM
from synth.distilabel.steps import RowMagpie, RowReward

STEP = "generate"
SERVER_BATCH = 50
"""Requests in flight at a time; a failed batch is a failed shard."""


class Generation(TypedDict):
    """One answer of an LLM."""

    id: str
    text: str | None
    """None where the LLM gave no answer."""
    finished: bool
    """Ended by itself within the token limit; True where the LLM does not tell."""
    tokens: int
    """Tokens generated; 0 where the LLM does not tell."""
    failure: NotRequired[str | None]
    """Why there is no answer, where it is known: `timeout`."""
    cached: NotRequired[bool]
    """Taken from the response cache: it cost no call."""


Ray = Mapping[str, Any] | None


def generate(
    prompts: Sequence[Mapping[str, Any]], llm: Any, num_generations: int, scratch: Path, ray: Ray = None
) -> list[Generation]:
    """Answers to `prompts` (`{"id", "messages"}`) in their order, `num_generations` each (`ChatGeneration`).

    Raises what `execute` raises.
    """
    rows = [{"id": prompt["id"], "messages": prompt["messages"]} for prompt in prompts]
    size = _batch_size(llm, len(rows))

    def task() -> Any:
        return ChatGeneration(llm=llm, num_generations=num_generations, **_common(size))

    return [_generation(row) for row in execute(rows, task, scratch, size, ray)]


def generate_from_template(
    rows: Sequence[Mapping[str, Any]], template: str, columns: Sequence[str], llm: Any, scratch: Path, ray: Ray = None
) -> list[Generation]:
    """An answer to each row's `template` (Jinja2) with its `columns` filled in (`TextGeneration`)."""
    size = _batch_size(llm, len(rows))

    def task() -> Any:
        return TextGeneration(llm=llm, template=template, columns=list(columns), **_common(size))

    asked = [{name: row[name] for name in ("id", *columns)} for row in rows]
    return [_generation(row) for row in execute(asked, task, scratch, size, ray)]


def magpie(
    rows: Sequence[Mapping[str, Any]], llm: AskedLLM, n_turns: int, scratch: Path, ray: Ray = None
) -> list[dict[str, Any]]:
    """A conversation for each row (`{"id", "system_prompt"}`): `{"id", "conversation", "finished", "tokens"}`."""
    size = _batch_size(llm, len(rows))

    def task() -> Any:
        return RowMagpie(llm=llm, n_turns=n_turns, **_common(size))

    names = ("id", "conversation", "finished", "tokens", "failure")
    return [{name: row[name] for name in names} for row in execute(rows, task, scratch, size, ray)]


def rate(
    rows: Sequence[Mapping[str, Any]], llm: Any, aspect: str, scratch: Path, ray: Ray = None
) -> list[dict[str, Any]]:
    """A judge's ratings of each row's `generations` as answers to its `instruction` (`UltraFeedback`).

    `{"id", "ratings", "tokens"}`; `ratings` is None where the judge's words could not be read for each of them.
    """
    size = _batch_size(llm, len(rows))

    def task() -> Any:
        return UltraFeedback(llm=llm, aspect=aspect, **_common(size))

    asked = [{name: row[name] for name in ("id", "instruction", "generations")} for row in rows]
    found = []
    for row, given in zip(execute(asked, task, scratch, size, ray), rows, strict=True):
        ratings = row.get("ratings")
        whole = ratings is not None and len(ratings) == len(given["generations"]) and None not in ratings
        found.append({"id": row["id"], "ratings": ratings if whole else None, "tokens": _tokens(row)})
    return found


def reward(rows: Sequence[Mapping[str, Any]], model: str, scratch: Path, ray: Ray = None) -> list[float]:
    """Score of each row's `conversation` by a sequence classifier with one label (`RewardModelScore`)."""
    import torch
    import transformers

    # Imported before the fork, so that every shard's process has them.
    assert torch and transformers.AutoModelForSequenceClassification

    def step() -> Any:
        return RowReward(name=STEP, model=model, torch_dtype="float32", input_batch_size=len(rows))

    asked = [{"id": row["id"], "conversation": row["conversation"]} for row in rows]
    return [float(row["score"]) for row in execute(asked, step, scratch, len(rows), ray)]


def near_duplicates(texts: Sequence[str], arguments: Mapping[str, Any]) -> list[bool]:
    """Whether each text is a near copy of an earlier one, by distilabel's MinHashDedup run in this process."""
    if not texts:
        return []
    with Pipeline(name="dedup"):
        step = MinHashDedup(**arguments)
    step.load()
    # distilabel's copy of MinHashLSH.__init__ lacks what datasketch 1.10 reads; in memory any kind of key will do.
    step._lsh._require_bytes_keys = False
    rows = next(step.process([{"text": text} for text in texts]))
    step.unload()
    return [not row["keep_row_after_minhash_filtering"] for row in rows]


def _common(size: int) -> dict[str, Any]:
    return {"name": STEP, "input_batch_size": size, "add_raw_input": False, "add_raw_output": False}


def _batch_size(llm: Any, rows: int) -> int:
    """An LLM of this machine batches by itself; only requests to a server are better cut up."""
    inner = llm._inner if isinstance(llm, AskedLLM) else llm
    return SERVER_BATCH if isinstance(inner, ServerLLM) else rows


def _generation(row: Mapping[str, Any]) -> Generation:
    finished = row.get(f"llm_{STEP}_finished")
    made = Generation(
        id=row["id"],
        text=row["generation"],
        finished=True if finished is None else bool(finished),
        tokens=_tokens(row),
    )
    if (failure := row.get(f"llm_{STEP}_failure")) is not None:
        made["failure"] = str(failure)
    if row.get(f"llm_{STEP}_cached"):
        made["cached"] = True
    return made


def _tokens(row: Mapping[str, Any]) -> int:
    statistics = (row.get("distilabel_metadata") or {}).get(f"statistics_{STEP}") or {}
    return int(statistics.get("output_tokens") or 0)
