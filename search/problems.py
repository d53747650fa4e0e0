"""The problems of a corpus, and how they are put to the model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from acorn.problems import WordProblem, as_prompt
from search.config import SearchConfig


def load_problems(corpus: Path, config: SearchConfig) -> list[WordProblem]:
    """The problems asked, in the corpus' order. Raises ValueError for a corpus without any, or with two of one id."""
    file = corpus / "problems" / f"{config.split}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    problems = [cast(WordProblem, json.loads(line)) for line in lines]
    if not problems:
        raise ValueError(
            f"the corpus has no problems/{config.split}.jsonl with any problem: take a corpus of stage `problems` with "
            f"problems_{config.split} above 0"
        )
    if len({problem["id"] for problem in problems}) < len(problems):
        raise ValueError(
            f"problems/{config.split}.jsonl has two problems of one id: ids tell problems apart, texts do not"
        )
    kept = {problem["id"] for problem in _chosen(problems, config)}
    return [problem for problem in problems if problem["id"] in kept]


def _chosen(problems: Sequence[WordProblem], config: SearchConfig) -> list[WordProblem]:
    if config.problems_per_level is None:
        return _draw(problems, config.problems, config.problem_seed)
    levels = sorted({problem["level"] for problem in problems})
    return [
        problem
        for level in levels
        for problem in _draw(
            [p for p in problems if p["level"] == level], config.problems_per_level, config.problem_seed
        )
    ]


def _draw(rows: Sequence[WordProblem], count: int | None, seed: int) -> list[WordProblem]:
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]


def encode(tokenizer: Any, question: str, form: str, system_prompt: str | None = None) -> list[int]:
    """Token ids of the prompt: the chat template up to the assistant's turn, or the document up to the solution.

    Raises ValueError for `chat` with a tokenizer that has no template.
    """
    if form == "plain":
        opening = tokenizer.bos_token or tokenizer.eos_token or ""
        return list(tokenizer.encode(opening + as_prompt(question), add_special_tokens=False))
    if not tokenizer.chat_template:
        raise ValueError("the model's tokenizer has no chat template: set format to plain, or give it a template")
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))
