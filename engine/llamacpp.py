"""The engine over llama.cpp, for an exported GGUF: each sequence is resubmitted to the slot that has most of it cached.

What is kept of the interface exactly: cutting at stop sequences of ids, limits, context, end tokens, usage, and equal
tokens when the same calls are made again in a fresh engine with one slot. What is not (see docs/engine.md): the draws
are llama.cpp's own, so sampled tokens differ from the torch engine's; and with several slots a sequence's logits
depend on who else is in the batch by rounding (1e-6), which seldom, but sometimes, changes a token.

llama.cpp's own `n` is not used: it gives the i-th completion the seed `seed + i`, and here every sequence brings its
own. A prefix is shared by copying one slot's cache to others instead, from 32 tokens gained on.

How stop sequences of ids are kept, see `engine.llamaslots`; what is drawn too much is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.interface import Sampling
from engine.llamaserver import LlamaServer
from engine.llamaslots import Slots, place, row
from engine.resubmit import Completion, Request, ResubmitEngine, Stops, add_usage

MOST_CONTEXT = 4096
"""Tokens of a slot when none are asked for: a model trained on 128k would take gigabytes for each."""


class LlamaCppEngine(ResubmitEngine):
    """`engine.interface.Engine` on a GGUF file.

    `slots`: sequences that run at once and keep their cache; more than that take turns and are prefilled anew.
    `context`: tokens of a sequence; 0 for the model's own, at most 4,096. Memory is `slots * context` cache rows.
    `threads`: default OMP_NUM_THREADS, else the cores of this process. `gpu_layers`: -1 for all.
    `exact`: f32 cache and no flash attention, for comparisons (log-probabilities off by 1e-5 instead of 3e-3).
    Use it as a context manager, or call `shutdown`. Raises LlamaError if the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int = 8,
        context: int = 0,
        threads: int | None = None,
        exact: bool = False,
        gpu_layers: int = 0,
    ) -> None:
        if slots < 1 or context < 0:
            raise ValueError(f"slots is {slots} and context {context}; give at least one slot, and context 0 or more")
        self._server = LlamaServer(
            path,
            slots=slots,
            context=context,
            most_context=MOST_CONTEXT,
            threads=threads,
            exact=exact,
            gpu_layers=gpu_layers,
        )
        self._slots = Slots(self._server, slots)
        super().__init__(self._server.context, self._slots.vocab, self._slots.ends)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="llama")

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End llama.cpp's threads and free the model."""
        self._pool.shutdown()
        self._server.close()

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """llama.cpp's own `/tokenize`, `/detokenize` or `/apply-template`, for callers that have text."""
        return self._server.request(path, body)

    def _complete(self, requests: Sequence[Request], sampling: Sampling, stop: Stops) -> list[Completion]:
        texts = self._slots.texts(stop)
        slots = len(self._slots.held)
        done: list[Completion] = []
        for start in range(0, len(requests), slots):
            done += self._wave(list(requests[start : start + slots]), sampling, texts)
        return done

    def _wave(self, requests: list[Request], sampling: Sampling, texts: list[str]) -> list[Completion]:
        """At most as many requests as there are slots, all at once."""
        prompts = [row(request.ids) for request in requests]
        chosen = place(prompts, self._slots.held)
        places = [chosen[index] for index in range(len(requests))]
        self._slots.copy(prompts, places, range(len(self._slots.held)))
        shared = self._slots.share(requests, places)
        jobs = [
            self._pool.submit(self._slots.complete, slot, request, sampling, texts)
            for slot, request in zip(places, requests, strict=True)
        ]
        done = [job.result() for job in jobs]
        for index, ran in shared.items():
            usage = add_usage(done[index].usage, requests[index].spent(ran, 0))
            done[index] = replace(done[index], usage=usage)
        return done
