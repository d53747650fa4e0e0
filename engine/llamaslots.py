"""The slots of a llama.cpp server as caches of token ids: which one holds what, prefixes that are copied from one to
another, and completions that end where ids do.

Slots are chosen by callers, who also see to it that nobody else uses those that they name in a call.

llama.cpp stops on strings alone. A stop sequence's text is sent as one: it occurs wherever the ids do, so nothing is
drawn past them; where it occurs in other tokens the completion ends early, and whoever asked asks again
(`engine.resubmit.Growing`). A stop sequence that is not whole characters has no text: then tokens come in chunks of
16, and up to 15 are drawn too much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

from engine.interface import Sampling, Usage
from engine.llamaserver import Call, Interrupted, LlamaServer
from engine.resubmit import Completion, Request, Stops, add_usage

COPY_FROM = 32
"""Copy a slot if that saves this many tokens: a copy costs two requests, about 2 ms."""
CHUNK = 16
KEPT_STOPS = 4
"""Sets of stop sequences whose texts are kept."""
_FIELDS = ["tokens", "stop_type", "stopping_word", "timings", "completion_probabilities"]
_SAMPLERS = ["temperature", "top_k", "top_p", "min_p"]


class Slots:
    """Of one server. For several threads, as long as each slot is used by one of them."""

    def __init__(self, server: LlamaServer, count: int) -> None:
        self._server = server
        self.vocab, self.ends = server.facts()
        """Ids are below the one, and the other ones end a sequence."""
        self.held = [row([]) for _ in range(count)]
        """The ids in each slot's cache."""
        self._stops: dict[tuple[tuple[int, ...], ...], list[str]] = {}
        self._calls: dict[int, Call] = {}
        self._interrupted: set[int] = set()
        self._plain: int | None = None

    def texts(self, stops: Stops) -> list[str]:
        """What to send for stop sequences; an empty text for those that are not whole characters."""
        key = tuple(map(tuple, stops))
        if (known := self._stops.get(key)) is None:
            known = shortest([self._text(stop) for stop in key])
            self._stops = dict(list(self._stops.items())[1 - KEPT_STOPS :]) | {key: known}
        return known

    def copy(self, prompts: Sequence[np.ndarray], places: Sequence[int], sources: Iterable[int]) -> None:
        """Give each prompt's slot the cache of the source that holds `COPY_FROM` tokens more of it, if one does."""
        sources, copies = list(sources), []
        for prompt, slot in zip(prompts, places, strict=True):
            shared = {source: common_prefix(prompt, self.held[source]) for source in sources}
            best = max(sources, key=shared.__getitem__)
            if shared[best] - common_prefix(prompt, self.held[slot]) >= COPY_FROM:
                copies.append((best, slot))
        if copies:
            before = list(self.held)
            for _, slot in copies:
                self.held[slot] = row([])  # not known, should copying fail
            self._server.copy_slots(copies)
            for source, slot in copies:
                self.held[slot] = before[source]

    def share(self, requests: Sequence[Request], places: Sequence[int]) -> dict[int, int]:
        """Prefill prompts that come several times once, and copy them; tokens run, by the row that did it."""
        prompts = [row(request.ids) for request in requests]
        first: dict[tuple[int, ...], int] = {}
        ran: dict[int, int] = {}
        for index, request in enumerate(requests):
            leader = first.setdefault(tuple(request.ids), index)
            missing = len(request.ids) - common_prefix(prompts[leader], self.held[places[leader]])
            if leader != index and missing >= COPY_FROM:
                ran[leader] = self._prefill(places[leader], request.ids)
        if ran:
            self.copy(prompts, places, places)
        return ran

    def complete(
        self,
        slot: int,
        request: Request,
        sampling: Sampling,
        texts: Sequence[str],
        *,
        scored: bool = True,
        cache: bool = True,
    ) -> Completion:
        """Run a request in a slot. `scored`: with log-probabilities; `cache`: go on from what the slot holds.

        Raises LlamaError, of which Interrupted tells that `interrupt` ended it; what the slot holds is then not known.
        """
        self.held[slot] = row([])
        body = {
            "prompt": request.ids,
            "id_slot": slot,
            "cache_prompt": cache,
            "n_predict": request.limit if all(texts) else min(request.limit, CHUNK),
            "stop": [text for text in texts if text],
            "return_tokens": True,
            "response_fields": _FIELDS,
            **sampling_body(sampling, request.seed, self.vocab),
        }
        if not scored:
            body["n_probs"] = 0
        answer = self._ask(slot, "/completion", body)
        drawn = [int(token) for token in answer["tokens"]]
        spent = request.spent(int(answer["timings"]["prompt_n"]), len(drawn))
        entries = list(answer.get("completion_probabilities", []))
        for position in self._unscored(drawn, entries, answer) if scored else ():
            entry, usage = self._score(slot, request, drawn[:position], drawn[position], sampling.logprobs)
            entries[position:] = [entry]
            spent = add_usage(spent, usage)
        self.held[slot] = row(request.ids + drawn[:-1])
        top = [_top(entry, sampling.logprobs) for entry in entries] if sampling.logprobs else []
        return Completion(drawn, [float(entry["logprob"]) for entry in entries], top, spent)

    def erase(self, slot: int) -> None:
        """Leave nothing in a slot."""
        self.held[slot] = row([])
        self._server.request(f"/slots/{slot}?action=erase", {})

    def interrupt(self, slot: int) -> None:
        """End what runs in a slot, and what its user still asks for, until it is `clear`ed."""
        self._interrupted.add(slot)
        if (call := self._calls.get(slot)) is not None:
            call.close()

    def clear(self, slot: int) -> None:
        """A slot has a new user."""
        self._interrupted.discard(slot)

    def _ask(self, slot: int, path: str, body: dict[str, Any]) -> Any:
        self._calls[slot] = call = self._server.call(path, body)
        try:
            if slot in self._interrupted:
                raise Interrupted(f"slot {slot} was interrupted")
            return call.answer()
        finally:
            del self._calls[slot]

    def _prefill(self, slot: int, ids: list[int]) -> int:
        """Tokens run."""
        # The server draws one token even for n_predict 0. It is not fed, and neither returned nor counted.
        body = {"prompt": ids, "id_slot": slot, "n_predict": 0, "cache_prompt": True, "response_fields": _FIELDS}
        self.held[slot] = row([])
        ran = int(self._ask(slot, "/completion", body)["timings"]["prompt_n"])
        self.held[slot] = row(ids)
        return ran

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
            entry, again = self._force(slot, asked, self._letter(), self.vocab)
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
        answer = self._ask(slot, "/completion", body)
        found = answer.get("completion_probabilities")
        return found[0] if found else None, asked.spent(int(answer["timings"]["prompt_n"]), 0)

    def _letter(self) -> int:
        """The token of 'a': whole characters."""
        if self._plain is None:
            self._plain = int(self._server.request("/tokenize", {"content": "a"})["tokens"][-1])
        return self._plain

    def _text(self, stop: tuple[int, ...]) -> str:
        """Text of a stop sequence, empty where it is not whole characters."""
        text = str(self._server.request("/detokenize", {"tokens": list(stop)})["content"])
        return "" if "\ufffd" in text else text


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
    kept: list[str] = []
    for text in sorted(dict.fromkeys(texts), key=len):
        if not any(other and other in text for other in kept):
            kept.append(text)
    return kept


def place(prompts: Sequence[np.ndarray], cached: Sequence[np.ndarray]) -> dict[int, int]:
    """Prompt -> a slot of its own, the longest common prefixes first, until the ones or the others are used up.

    `cached`: the ids that each slot holds.
    """
    pairs = product(range(len(prompts)), range(len(cached)))
    shared = {(at, slot): common_prefix(prompts[at], cached[slot]) for at, slot in pairs}
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for at, slot in sorted(shared, key=lambda pair: -shared[pair]):
        if at not in chosen and slot not in taken:
            chosen[at] = slot
            taken.add(slot)
    return chosen


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Length of what two rows of ids have in common from the start."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def row(ids: Sequence[int]) -> np.ndarray:
    """Ids to compare."""
    return np.asarray(ids, np.int64)


def _top(entry: dict[str, Any], count: int) -> list[tuple[int, float]]:
    return [(int(each["id"]), float(each["logprob"])) for each in entry["top_logprobs"][:count]]
