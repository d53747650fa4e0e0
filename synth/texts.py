"""Stages `rewrite` and `summarise`: what a small model on a laptop is for, from any folder of texts.

Documents come from a corpus (mails, articles: the stage `text` reads any folder). What a program can see of a bad
result is checked: unchanged, not shorter, copied word by word, a number that the text does not have. Whether the
meaning was kept it cannot see: use the filters' tags.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from acorn.stage import Job
from synth.curate import normalise
from synth.making import Task, make, provenance, readable
from synth.making_config import RewriteConfig, SummariseConfig, TextsConfig
from synth.shards import Row, read_jsonl

COPIED_WORDS = 5
"""Length of a word sequence that counts as copied."""
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def rewrite(job: Job) -> dict[str, float]:
    """Each document in each tone. Raises what `synth.making.make` raises."""
    config: RewriteConfig = job.config
    return _run(job, config.tones, lambda text, result, tone: rewrite_reason(text, result, tone, config))


def summarise(job: Job) -> dict[str, float]:
    """A summary of each document. Raises what `synth.making.make` raises."""
    config: SummariseConfig = job.config
    prompts = {"summary": config.system_prompt}
    return _run(job, prompts, lambda text, result, tone: summary_reason(text, result, config))


def rewrite_reason(text: str, result: str, tone: str, config: RewriteConfig) -> str | None:
    """What a program can see to be wrong with a rewritten text."""
    before, after = len(text.split()), len(result.split())
    if normalise(result) == normalise(text):
        return "unchanged"
    if tone in config.shorter and after >= before:
        return "not_shorter"
    return "too_long" if after > config.max_ratio * before else None


def summary_reason(text: str, result: str, config: SummariseConfig) -> str | None:
    """What a program can see to be wrong with a summary."""
    if len(result.split()) > config.max_ratio * len(text.split()):
        return "not_shorter"
    if copied(text, result) > config.max_copied:
        return "copied"
    if config.new_numbers == "reject" and not _numbers(result) <= _numbers(text):
        return "new_number"
    return None


def copied(text: str, result: str) -> float:
    """Share of the result's sequences of `COPIED_WORDS` words that stand in the text; 0 for a shorter result."""
    own, theirs = _sequences(result), set(_sequences(text))
    return sum(each in theirs for each in own) / len(own) if own else 0.0


def _sequences(text: str) -> list[tuple[str, ...]]:
    words = normalise(text).split()
    return [tuple(words[start : start + COPIED_WORDS]) for start in range(len(words) - COPIED_WORDS + 1)]


def _numbers(text: str) -> set[str]:
    return {found.replace(",", "") for found in _NUMBER.findall(text)}


def _run(job: Job, prompts: dict[str, str], reason_of: Any) -> dict[str, float]:
    documents, refused = choose_documents(job)
    asked = [
        {
            "id": f"{job.stage}-{document['id']}-{name}",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": document["text"]}],
            "parent": document["id"],
            "style": name,
        }
        for document in documents
        for name, system in prompts.items()
    ]

    def ask(shard: Sequence[Row], llm: Any) -> list[Any]:
        from synth.distilabel import generate

        return list(generate(shard, llm, 1, job.scratch, job.execution.ray))

    def rows_of(prompt: Row, answers: list[Row]) -> list[Row]:
        text, result = prompt["messages"][-1]["content"], (answers[0]["text"] or "").strip()
        row: Row = {
            "id": prompt["id"],
            "messages": [*prompt["messages"], {"role": "assistant", "content": result}],
            "source": f"{job.stage}/{prompt['style']}",
            "level": 0,
            **provenance(job, prompt["parent"]),
        }
        reason = readable(answers[0]) or reason_of(text, result, prompt["style"])
        return [row if reason is None else row | {"reason": reason}]

    return make(job, Task(asked, 1, ask, rows_of, refused))


def choose_documents(job: Job) -> tuple[list[Row], list[Row]]:
    """Different documents of the corpus's training part (`{"id", "text"}`), and rows of those that do not fit.

    The id is a hash of the text. Raises ValueError for a source that the corpus does not have.
    """
    config: TextsConfig = job.config
    documents = [row for path in sorted((job.inputs["corpus"] / "train").glob("*.jsonl")) for row in read_jsonl(path)]
    sources = {str(row.get("source")) for row in documents}
    if unknown := sorted(set(config.sources or ()) - sources):
        raise ValueError(f"sources: {unknown[0]!r} is not in the corpus; it has {', '.join(sorted(sources))}")
    different: dict[str, str] = {}
    for row in documents:
        if config.sources is None or row.get("source") in config.sources:
            text = str(row["text"]).strip()
            different.setdefault(blake2b(text.encode(), digest_size=8).hexdigest(), text)
    order = list(different)
    Random(f"texts:{config.seed}").shuffle(order)
    kept: list[Row] = []
    refused: list[Row] = []
    for name in order:
        if config.texts is not None and len(kept) == config.texts:
            break
        words = len(different[name].split())
        if config.min_words <= words <= config.max_words:
            kept.append({"id": name, "text": different[name]})
        else:
            reason = "text_too_short" if words < config.min_words else "text_too_long"
            messages = [{"role": "user", "content": different[name]}]
            short: Row = {"id": f"{job.stage}-{name}", "messages": messages, "source": job.stage, "level": 0}
            refused.append(short | provenance(job, name) | {"reason": reason})
    return kept, refused
