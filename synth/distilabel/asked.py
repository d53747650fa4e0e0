"""Between a task and its LLM: answers that are known already are not asked for again, and equal prompts are told apart.

The cache is keyed by (model, conversation, parameters, which row asks). It outlives steps and recipes, so a second run
against a server costs nothing for what it answered before, and a killed shard keeps the batches that were answered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distilabel.models import LLM
from distilabel.models.llms.utils import prepare_output
from distilabel.models.mixins.magpie import MagpieChatTemplateMixin
from pydantic import PrivateAttr

from synth.cache import ResponseCache, response_key


class Conversation(list[dict[str, str]]):
    """A conversation that knows its row, and what was generated for it: Magpie's tasks hand on nothing else."""

    def __init__(self, messages: list[dict[str, str]], row: str) -> None:
        super().__init__(messages)
        self.row = row
        self.tokens = 0
        self.finished = True
        self.failure: str | None = None

    def note(self, output: dict[str, Any]) -> None:
        self.tokens += sum(output["statistics"].get("output_tokens") or [0])
        self.finished &= all(output.get("finished") or [True])
        self.failure = self.failure or next(filter(None, output.get("failure") or []), None)


class AskedLLM(LLM, MagpieChatTemplateMixin):  # type: ignore[misc]
    """`inner` behind a cache. `known_as` names its model in the keys: type, digest of the weights, own arguments."""

    known_as: str
    cache: str | None = None
    """The cache's file; None asks for everything."""
    cache_bytes: int | None = None
    """Size that it may have."""
    _inner: Any = PrivateAttr(None)
    _responses: ResponseCache | None = PrivateAttr(None)

    @classmethod
    def around(cls, inner: Any, known_as: str, cache: Path | None, cache_bytes: int | None) -> AskedLLM:
        made = cls(
            known_as=known_as,
            cache=None if cache is None else str(cache),
            cache_bytes=cache_bytes,
            generation_kwargs=inner.generation_kwargs,
            magpie_pre_query_template=getattr(inner, "magpie_pre_query_template", None),
        )
        made._inner = inner
        return made

    def load(self) -> None:
        if self.use_magpie_template:
            self._inner.use_magpie_template = True
        self._inner.load()
        super().load()
        self._responses = None if self.cache is None else ResponseCache(Path(self.cache), self.cache_bytes)

    def unload(self) -> None:
        self._inner.unload()
        if self._responses is not None:
            self._responses.close()
            self._responses = None

    @property
    def model_name(self) -> str:
        return str(self._inner.model_name)

    @property
    def generate_parameters(self) -> Any:
        return self._inner.generate_parameters

    def generate(self, inputs: list[Any], num_generations: int = 1, **kwargs: Any) -> list[Any]:
        """The answers of the cache, and the inner LLM's for the rest, in one call."""
        salts = [getattr(messages, "row", "") for messages in inputs]
        keys = [
            response_key(self.known_as, list(messages), salt, num_generations, kwargs | {"as": self._speaker(messages)})
            for messages, salt in zip(inputs, salts, strict=True)
        ]
        known = {} if self._responses is None else self._responses.read(keys)
        missing = [index for index, key in enumerate(keys) if key not in known]
        unknown, theirs = [inputs[index] for index in missing], [salts[index] for index in missing]
        fresh = self._ask(unknown, theirs, num_generations, kwargs)
        outputs = {index: _plain(output) for index, output in zip(missing, fresh, strict=True)}
        if self._responses is not None:
            whole = {keys[i]: json.dumps(o) for i, o in outputs.items() if None not in o["generations"]}
            self._responses.write(whole)
        answers = [outputs[i] if i in outputs else json.loads(known[key]) for i, key in enumerate(keys)]
        for index, (messages, output) in enumerate(zip(inputs, answers, strict=True)):
            output["cached"] = [index not in outputs] * len(output["generations"])
            if isinstance(messages, Conversation):
                messages.note(output)
        return answers

    def _ask(self, inputs: list[Any], salts: list[str], num_generations: int, kwargs: dict[str, Any]) -> list[Any]:
        if not inputs:
            return []
        plain = [list(messages) for messages in inputs]
        if any(salts) and hasattr(self._inner, "_salts"):
            self._inner._salts = salts
        try:
            found: list[Any] = self._inner.generate_outputs(inputs=plain, num_generations=num_generations, **kwargs)
        finally:
            if hasattr(self._inner, "_salts"):
                self._inner._salts = None
        return found

    def _speaker(self, messages: Any) -> str:
        """Whose turn it is: with Magpie, the same messages may be continued by either."""
        users = self.use_magpie_template and (not messages or messages[-1]["role"] != "user")
        return f"user {self.magpie_pre_query_template}" if users else "assistant"


def _plain(output: Any) -> dict[str, Any]:
    """One shape for every LLM's output: text, tokens, whether it ended, and why there is none."""
    texts = list(output["generations"])
    counted = list((output.get("statistics") or {}).get("output_tokens") or [])
    tokens = [int(each or 0) for each in counted] if len(counted) == len(texts) else [0] * len(texts)
    made: dict[str, Any] = prepare_output(texts)
    made["statistics"] = {"output_tokens": tokens}
    made["finished"] = [bool(each) for each in output.get("finished") or [True] * len(texts)]
    made["failure"] = list(output.get("failure") or [None] * len(texts))
    return made
