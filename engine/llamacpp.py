"""The engine over llama.cpp, for an exported GGUF: each sequence is resubmitted to the slot that has most of it cached.

What is kept of the interface exactly: cutting at stop sequences of ids, limits, context, end tokens, usage, and equal
tokens when the same calls are made again in a fresh engine with one slot. What is not (see docs/engine.md): the draws
are llama.cpp's own, so sampled tokens differ from the torch engine's; and with several slots a sequence's logits
depend on who else is in the batch by rounding (1e-6), which seldom, but sometimes, changes a token.

llama.cpp's own `n` is not used: it gives the i-th completion the seed `seed + i`, and here every sequence brings its
own. A prefix is shared by copying one slot's cache to others instead, from 32 tokens gained on.

llama.cpp stops on strings alone. A stop sequence's text is sent as one: it occurs wherever the ids do, so nothing is
drawn past them; where it occurs in other tokens the sequence is resubmitted. A stop sequence that is not whole
characters has no text: then tokens come in chunks of 16, and up to 15 are drawn too much, dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from engine.interface import Sampling, Usage
from engine.llamaserver import LlamaServer
from engine.resubmit import Completion, Request, ResubmitEngine, Stops, add_usage

MOST_CONTEXT = 4096
"""Tokens of a slot when none are asked for: a model trained on 128k would take gigabytes for each."""
COPY_FROM = 32
"""Copy a slot if that saves this many tokens: a copy costs two requests, about 2 ms."""
CHUNK = 16
_FIELDS = ["tokens", "stop_type", "stopping_word", "timings", "completion_probabilities"]
_SAMPLERS = ["temperature", "top_k", "top_p", "min_p"]


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
        super().__init__(self._server.context, *self._server.facts())
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="llama")
        self._cached = [_row([]) for _ in range(slots)]
        self._texts: dict[tuple[int, ...], str] = {}
        self._plain = int(self._server.request("/tokenize", {"content": "a"})["tokens"][-1])

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
        texts = shortest([self._text(tuple(sequence)) for sequence in stop])
        slots = len(self._cached)
        done: list[Completion] = []
        for start in range(0, len(requests), slots):
            done += self._wave(list(requests[start : start + slots]), sampling, texts)
        return done

    def _wave(self, requests: list[Request], sampling: Sampling, texts: list[str]) -> list[Completion]:
        """At most as many requests as there are slots, all at once."""
        places, warmed = self._prepare(requests)
        jobs = [
            self._pool.submit(self._run, slot, request, sampling, texts)
            for slot, request in zip(places, requests, strict=True)
        ]
        done = [job.result() for job in jobs]
        done[0] = Completion(done[0].ids, done[0].logprobs, done[0].top, add_usage(done[0].usage, warmed))
        return done

    def _prepare(self, requests: list[Request]) -> tuple[list[int], Usage]:
        """Choose a slot for each request and bring shared prefixes there; what prefilling them spent."""
        places = place([_row(request.ids) for request in requests], self._cached)
        self._copy(requests, places)
        spent = Usage()
        first: dict[tuple[int, ...], int] = {}
        for row, request in enumerate(requests):
            leader = first.setdefault(tuple(request.ids), row)
            if leader != row and self._missing(requests[leader], places[leader]) >= COPY_FROM:
                spent = add_usage(spent, self._prefill(requests[leader], places[leader]))
        self._copy(requests, places)
        return places, spent

    def _missing(self, request: Request, slot: int) -> int:
        return len(request.ids) - common_prefix(_row(request.ids), self._cached[slot])

    def _prefill(self, request: Request, slot: int) -> Usage:
        # The server draws one token even for n_predict 0. It is not fed, and neither returned nor counted.
        body = {
            "prompt": request.ids,
            "id_slot": slot,
            "n_predict": 0,
            "cache_prompt": True,
            "response_fields": _FIELDS,
        }
        ran = int(self._server.request("/completion", body)["timings"]["prompt_n"])
        self._cached[slot] = _row(request.ids)
        return request.spent(ran, 0)

    def _copy(self, requests: list[Request], places: list[int]) -> None:
        """Copy to each request's slot the cache of another one that holds `COPY_FROM` tokens more of it."""
        copies = []
        for request, slot in zip(requests, places, strict=True):
            shared = [common_prefix(_row(request.ids), ids) for ids in self._cached]
            source = max(range(len(shared)), key=shared.__getitem__)
            if shared[source] - shared[slot] >= COPY_FROM:
                copies.append((source, slot))
        if copies:
            self._server.copy_slots(copies)
            before = list(self._cached)
            for source, slot in copies:
                self._cached[slot] = before[source]

    def _run(self, slot: int, request: Request, sampling: Sampling, texts: list[str]) -> Completion:
        """One request to the server. Runs in a thread; one for each slot at a time."""
        body = {
            "prompt": request.ids,
            "id_slot": slot,
            "cache_prompt": True,
            "n_predict": request.limit if all(texts) else min(request.limit, CHUNK),
            "stop": [text for text in texts if text],
            "return_tokens": True,
            "response_fields": _FIELDS,
            **sampling_body(sampling, request.seed, self.vocab),
        }
        answer = self._server.request("/completion", body)
        drawn = [int(token) for token in answer["tokens"]]
        spent = request.spent(int(answer["timings"]["prompt_n"]), len(drawn))
        entries = list(answer.get("completion_probabilities", []))
        for position in self._unscored(drawn, entries, answer):
            entry, usage = self._score(slot, request, drawn[:position], drawn[position], sampling.logprobs)
            entries[position:] = [entry]
            spent = add_usage(spent, usage)
        self._cached[slot] = _row(request.ids + drawn[:-1])
        top = [_top(entry, sampling.logprobs) for entry in entries] if sampling.logprobs else []
        return Completion(drawn, [float(entry["logprob"]) for entry in entries], top, spent)

    def _unscored(self, drawn: list[int], entries: list[Any], answer: dict[str, Any]) -> range:
        """Positions from the first on whose log-probability the server left out.

        It drops the last ones if a stop string ended the text, as many as the string has tokens by itself; and that of
        every token that does not end on a whole character. In the second case nothing says which: all are asked again.
        """
        cut = len(drawn) - len(entries)
        if cut == 0:
            return range(0)
        if answer["stop_type"] == "word":
            tokens = self._server.request("/tokenize", {"content": answer["stopping_word"], "parse_special": True})
            if cut == len(tokens["tokens"]):
                return range(len(entries), len(drawn))
        return range(len(drawn))

    def _score(
        self, slot: int, request: Request, before: list[int], token: int, count: int
    ) -> tuple[dict[str, Any], Usage]:
        """The server's entry for `token` after `before`, by making it draw just that: costs one token run again."""
        asked = Request(request.ids + before, request.prompt, 0, 1)
        entry, usage = self._force(slot, asked, token, max(1, count))
        if entry is None:  # a part of a character: the server leaves it out, but lists it among all tokens
            entry, again = self._force(slot, asked, self._plain, self.vocab)
            assert entry is not None, "the token of 'a' is a whole character"
            usage = add_usage(usage, again)
            entry["logprob"] = next(each["logprob"] for each in entry["top_logprobs"] if each["id"] == token)
        return entry, usage

    def _force(self, slot: int, asked: Request, token: int, count: int) -> tuple[dict[str, Any] | None, Usage]:
        body = {
            "prompt": asked.ids,
            "id_slot": slot,
            "cache_prompt": True,
            "n_predict": 1,
            "temperature": 0.0,
            "logit_bias": [[token, 1e4]],  # only the draw is biased; probabilities are those of the raw logits
            "n_probs": count,
            "response_fields": _FIELDS,
        }
        answer = self._server.request("/completion", body)
        found = answer.get("completion_probabilities")
        return found[0] if found else None, asked.spent(int(answer["timings"]["prompt_n"]), 0)

    def _text(self, stop: tuple[int, ...]) -> str:
        """Text of a stop sequence, empty where it is not whole characters."""
        if stop not in self._texts:
            text = str(self._server.request("/detokenize", {"tokens": list(stop)})["content"])
            self._texts[stop] = "" if "\ufffd" in text else text
        return self._texts[stop]


def sampling_body(
    sampling: Sampling, seed: int, vocab: int, prompt: Sequence[int] = (), limit: int = 0
) -> dict[str, Any]:
    """llama-server's fields for a `Sampling`, its samplers in `Sampling`'s order and no others.

    Penalties need `prompt` and the `limit` of new tokens. llama.cpp penalises the tokens of the prompt, too, for which
    a bias makes up: `frequency_penalty` is exact; a token of the prompt has no `presence_penalty`, drawn or not.
    """
    body: dict[str, Any] = {
        "seed": seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "samplers": _SAMPLERS,
        "n_probs": min(max(1, sampling.logprobs), vocab),
    }
    bias = dict(sampling.logit_bias)
    if sampling.penalises:
        body["samplers"] = ["penalties", *_SAMPLERS]
        body |= {"repeat_last_n": len(prompt) + limit, "repeat_penalty": 1.0}  # all tokens count; nothing is divided
        body |= {name: getattr(sampling, name) for name in ("frequency_penalty", "presence_penalty")}
        for token, count in Counter(prompt).items():
            bias[token] = bias.get(token, 0.0) + count * sampling.frequency_penalty + sampling.presence_penalty
    return body | {"logit_bias": [list(pair) for pair in bias.items()]} if bias else body


def shortest(texts: Sequence[str]) -> list[str]:
    """`texts` without those that hold another: where one occurs, so does the other. Empty ones stay."""
    return [
        text for text in dict.fromkeys(texts) if not any(other and other != text and other in text for other in texts)
    ]


def place(prompts: Sequence[np.ndarray], cached: Sequence[np.ndarray]) -> list[int]:
    """A slot of its own for each prompt, the longest common prefixes first; `cached`: the ids that each slot holds."""
    pairs = product(range(len(prompts)), range(len(cached)))
    chosen: dict[int, int] = {}
    for row, slot in sorted(pairs, key=lambda pair: -common_prefix(prompts[pair[0]], cached[pair[1]])):
        if row not in chosen and slot not in chosen.values():
            chosen[row] = slot
    return [chosen[row] for row in range(len(prompts))]


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Length of what two rows of ids have in common from the start."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _row(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int64)


def _top(entry: dict[str, Any], count: int) -> list[tuple[int, float]]:
    return [(int(each["id"]), float(each["logprob"])) for each in entry["top_logprobs"][:count]]
