"""What Search and Learn's search functions are given: an engine as its `llm`, a PRM folder as its `prm`.

Its code is imported from a checkout and called unchanged; see `benchmarks.search_and_learn`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.interface import Engine, Sampling, Verifier
from search.problems import encode
from search.steps import StepSplitter

DELIMITER = "\n\n"


class Llm:
    """What Search and Learn asks of vLLM's `LLM`, over an engine. `keep`: continue sequences by their text."""

    def __init__(self, engine: Engine, tokenizer: Any, splitter: StepSplitter, keep: bool) -> None:
        self._engine, self._tokenizer, self._splitter, self._keep = engine, tokenizer, splitter, keep
        self._kept: dict[str, Any] = {}
        self._seed = 0

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    def generate(self, prompts: Sequence[str], sampling_params: Any, use_tqdm: bool = False) -> list[Any]:
        """One output for each prompt; `stop_reason` is the stop string, or None where generation ended otherwise."""
        seqs = self._start(prompts)
        sampling = Sampling(temperature=sampling_params.temperature, top_p=sampling_params.top_p)
        stops = self._splitter.stops if sampling_params.stop else ()
        outs = self._engine.step(seqs, sampling, sampling_params.max_tokens, stops)
        answers = []
        for prompt, seq, out in zip(prompts, seqs, outs, strict=True):
            text = self._splitter.text(out.ids)
            stop = DELIMITER if out.finish == "stop" else None
            if self._keep and prompt + text not in self._kept:
                self._kept[prompt + text] = seq
            else:
                self._engine.close([seq])
            output = types.SimpleNamespace(text=text, token_ids=out.ids, stop_reason=stop)
            answers.append(types.SimpleNamespace(outputs=[output]))
        return answers

    def forget(self) -> None:
        """Close what was kept."""
        self._engine.close(list(self._kept.values()))
        self._kept = {}

    def _start(self, prompts: Sequence[str]) -> list[Any]:
        seeds = range(self._seed, self._seed + len(prompts))
        self._seed += len(prompts)
        new = [index for index, prompt in enumerate(prompts) if prompt not in self._kept]
        # Texts that went astray grow until they fill the context; cut at their beginning, they end one token later.
        room = 1 - self._engine.context
        ids = [self._tokenizer.encode(prompts[index], add_special_tokens=False)[room:] for index in new]
        opened = dict(zip(new, self._engine.open(ids, [seeds[index] for index in new]), strict=True))
        return [
            opened[index] if index in opened else self._engine.fork(self._kept[prompt], [seeds[index]])[0]
            for index, prompt in enumerate(prompts)
        ]


class Prm:
    """What Search and Learn asks of its PRM class: whole texts, scored at the end of each step, every time."""

    def __init__(self, verifier: Verifier, tokenizer: Any, splitter: StepSplitter, batch: int) -> None:
        self._verifier, self._tokenizer, self._splitter, self._batch = verifier, tokenizer, splitter, batch
        self.tokens = 0
        """Of all texts, each with its prompt. (Here equal prompts of a batch run once, which is in their favour.)"""

    def score(self, questions: list[str], outputs: list[list[str]]) -> list[list[list[float]]]:
        """Probabilities of each step, for each output of each question."""
        rows = [(question, text) for question, texts in zip(questions, outputs, strict=True) for text in texts]
        scores = iter([one for i in range(0, len(rows), self._batch) for one in self._run(rows[i : i + self._batch])])
        return [[next(scores) for _ in texts] for texts in outputs]

    def _run(self, rows: list[tuple[str, str]]) -> list[list[float]]:
        prompts = [encode(self._tokenizer, question, "chat") for question, _ in rows]
        paths = [self._steps(text) for _, text in rows]
        self.tokens += sum(map(len, prompts)) + sum(len(step) for path in paths for step in path)
        seqs = self._verifier.open(prompts)
        scores = self._verifier.read(seqs, paths)
        self._verifier.close(seqs)
        return scores

    def _steps(self, text: str) -> list[list[int]]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if not text.endswith(DELIMITER):
            ids.append(self._tokenizer.eos_token_id)  # their texts do not say so, but they end only there
        return self._splitter.split(ids)


def load_theirs(checkout: Path) -> tuple[type, dict[str, Callable[..., Any]]]:
    """Search and Learn's `Config` and search functions. What they import and do not use here becomes empty modules."""
    if not (checkout / "src" / "sal" / "search").is_dir():
        raise SystemExit(f"{checkout} is no checkout of huggingface/search-and-learn: it has no src/sal/search")
    unused = {
        "vllm": {"LLM": object, "SamplingParams": SamplingParams},
        "latex2sympy2": {"latex2sympy": None},
        "word2number": {"w2n": None},
        "sal.models.reward_models": {"PRM": object},
    }
    for name, content in unused.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
    sys.path.insert(0, str(checkout / "src"))
    from sal.config import Config  # type: ignore[import-not-found]
    from sal.search.beam_search import beam_search  # type: ignore[import-not-found]
    from sal.search.best_of_n import best_of_n  # type: ignore[import-not-found]
    from sal.search.diverse_verifier_tree_search import dvts  # type: ignore[import-not-found]

    return Config, {"best_of_n": best_of_n, "beam_search": beam_search, "dvts": dvts}


@dataclass
class SamplingParams:
    """The fields of vLLM's that Search and Learn sets."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    n: int = 1
    stop: list[str] | None = None
    include_stop_str_in_output: bool = False
