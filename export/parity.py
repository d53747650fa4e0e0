"""The gate: a GGUF, through llama.cpp, must do what the Hugging Face model in fp32 does.

Compared are token ids (`export.tokens`), the rendered chat template, greedy tokens, and next-token distributions on
held-out text: log-probabilities, their KL, top-1 agreement, and perplexity, which is reported and no measure of
sameness (a Q2_K file had a lower one than f32 at 127 times the KL of Q8_0). A failure raises ParityError, and the step
publishes nothing. The proof holds no timings, so it is the same bytes each time; rounding keeps the last bits of fp32
out.

llama.cpp's server gives log-probabilities of the n likeliest tokens after a prompt, so each position is one request
over a growing prefix. All other tokens form one bucket: by the data-processing inequality the KL over buckets is a
lower bound, and it is exact when n covers the vocabulary.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.config import Proof
from export.llamacpp import LlamaCpp
from export.reference import Reference
from export.strings import conversations
from export.tokens import ParityError, first_difference

if TYPE_CHECKING:
    import numpy as np

GREEDY_TYPES = ("f32", "f16")
"""Types whose greedy tokens must equal the fp32 model's; for the others agreement is only reported."""
_DOCUMENT_CHARACTERS = 2000
_COMPARED = -60.0  # tokens that are less likely have probabilities too small for fp32 to tell apart
_LOWEST = -80.0  # log-probabilities are cut here: below, fp32 underflows to llama.cpp's -3.4e38


@dataclass(frozen=True)
class HeldOut:
    """Token sequences and the positions in them to compare, with the fp32 model's answer.

    `prefixes`: (sequence, length) pairs; `logprobs` [positions, vocabulary], one row per prefix.
    """

    origin: str
    sequences: list[list[int]]
    prefixes: list[tuple[int, int]]
    logprobs: np.ndarray


@dataclass(frozen=True)
class _Gap:
    """One step off the greedy path: by how much the fp32 model prefers its own token, and what happened."""

    nats: float
    what: str


def template_parity(reference: Reference, llama: LlamaCpp) -> dict[str, Any]:
    """The rendered chat template and its token ids, from both. ParityError at the first conversation that differs."""
    talks = [(talk, True) for talk in conversations()]
    talks += [([*talk, {"role": "assistant", "content": "done"}], False) for talk in conversations()]
    for index, (talk, prompt) in enumerate(talks):
        rendered = reference.render_text(talk, prompt), llama.render(talk, prompt)
        if rendered[0] != rendered[1]:
            where = _text_difference(*rendered)
            raise ParityError(f"template parity: conversation {index}, {talk}: {where}")
        expected, found = reference.render(talk, prompt), llama.tokenize(rendered[1])
        if expected != found:
            raise ParityError(f"template parity: conversation {index}, {talk}: {first_difference(expected, found)}")
    return {"conversations": len(talks), "equal": True}


def hold_out(reference: Reference, documents: list[str], proof: Proof, context: int) -> HeldOut:
    """Held-out sequences (documents, else the built-in conversations) and the fp32 model's view of them.

    Positions are spread evenly over up to 16 sequences, and within each over its length.
    """
    import numpy as np

    window = min(proof.window, context - 1)
    ids = reference.tokenize(documents) if documents else [reference.render(talk) for talk in conversations()]
    opener = [] if reference.bos_id is None or not documents else [reference.bos_id]
    sequences = [[*opener, *sequence][:window] for sequence in ids if len(sequence) > 1][:16]
    if not sequences:
        raise ParityError(
            "the corpus input's validation documents are single tokens: nothing to compare on; leave it out"
        )
    share = math.ceil(proof.positions / len(sequences))
    prefixes: list[tuple[int, int]] = []
    rows = []
    for index, sequence in enumerate(sequences):
        steps = range(share) if share > 1 else (1,)  # a single position: the last, which sees the most
        lengths = sorted({1 + (len(sequence) - 1) * step // max(1, share - 1) for step in steps})
        lengths = lengths[: proof.positions - len(prefixes)]
        rows.append(reference.logprobs(sequence)[[length - 1 for length in lengths]])
        prefixes += [(index, length) for length in lengths]
    return HeldOut("corpus" if documents else "built-in", sequences, prefixes, np.concatenate(rows))


def distribution_parity(
    llama: LlamaCpp, kind: str, held_out: HeldOut, proof: Proof, gate: bool = True
) -> dict[str, Any]:
    """Differences between the fp32 model and the GGUF at the held-out positions.

    With `gate` a ParityError beyond the thresholds.

    `logit_difference` is that of log-probabilities, over every token that llama.cpp was asked for: it leaves out what
    all logits of a position have in common, which no output depends on. Perplexity is that of the text itself; a token
    that llama.cpp was not asked for has its even share of the bucket, on both sides.
    """
    import numpy as np
    from tqdm import tqdm

    count = min(proof.probabilities, held_out.logprobs.shape[1])
    kls, agree, spread, missing, losses = [], [], [], [], []
    work = zip(held_out.prefixes, held_out.logprobs, strict=True)
    for (index, length), expected in tqdm(
        work, desc=f"{kind} against fp32", total=len(held_out.prefixes), leave=False, disable=None
    ):
        sequence = held_out.sequences[index]
        ids, logprobs = llama.next_logprobs(sequence[:length], count)
        found = np.maximum(np.array(logprobs), _LOWEST)
        found -= np.logaddexp.reduce(found) if count == len(expected) else lost_in_softmax(expected)
        kls.append(_kl(expected, ids, found))
        agree.append(ids[0] == int(expected.argmax()))
        likely = expected[ids] > _COMPARED
        spread.append(float(np.abs(expected[ids] - found)[likely].max()))
        missing.append(max(0.0, 1.0 - float(np.exp(expected[ids]).sum())))
        if length < len(sequence):
            losses.append(_loss(sequence[length], expected, ids, found))
    before, after = (math.exp(-float(np.mean(side))) for side in zip(*losses, strict=True)) if losses else (1.0, 1.0)
    result = {
        "kl": _rounded(float(np.mean(kls))),
        "kl_worst": _rounded(float(np.max(kls))),
        "top1": round(float(np.mean(agree)), 4),
        "logit_difference": _rounded(float(np.max(spread))),
        "perplexity": round(after, 6),
        "perplexity_delta": round(after - before, 6),
        "bucket_mass": _rounded(float(np.mean(missing))) if count < held_out.logprobs.shape[1] else 0.0,
        "positions": len(kls),
        "max_kl": proof.max_kl[kind],  # type: ignore[index]
        "min_top1": proof.min_top1[kind],  # type: ignore[index]
        "max_logit": proof.max_logit.get(kind),  # type: ignore[call-overload]
    }
    if gate:
        _check_thresholds(kind, result, held_out, kls, agree, spread)
    return result


def greedy_parity(
    reference: Reference, llama: LlamaCpp, kind: str, held_out: HeldOut, proof: Proof, context: int
) -> tuple[dict[str, Any], float]:
    """Greedy tokens of llama.cpp beside the fp32 model's; also llama.cpp's speed in tokens per second.

    llama.cpp's continuation is scored by one forward of the fp32 model: it is the greedy one exactly if each token of
    it is the likeliest after those before, and if it ends (early) where an end-of-generation token is.
    """
    equal = ties = tokens = 0
    seconds = 0.0
    prompts = list(_prompts(reference, held_out, proof, context))
    for index, prompt in enumerate(prompts):
        start = time.perf_counter()
        found = llama.greedy(prompt, proof.greedy_tokens)
        seconds += time.perf_counter() - start
        tokens += len(found)
        gaps = _gaps(reference, prompt, found, proof.greedy_tokens)
        beyond = [gap for gap in gaps if not gap.nats <= proof.tie_nats]
        if kind in GREEDY_TYPES and beyond:
            raise ParityError(
                f"{kind}: greedy prompt {index} differs: {beyond[0].what}, which the fp32 model prefers by "
                f"{beyond[0].nats:.3g} nats (proof.tie_nats is {proof.tie_nats:g})"
            )
        equal += not gaps
        ties += bool(gaps) and not beyond
    return {"prompts": len(prompts), "tokens": tokens, "equal": equal, "ties": ties}, tokens / max(seconds, 1e-9)


def read_documents(corpus: Path | None, count: int) -> list[str]:
    """The first `count` validation documents of a corpus artifact, each cut to 2,000 characters; none without one."""
    texts: list[str] = []
    for path in sorted((corpus / "validation").glob("*.jsonl")) if corpus else []:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if len(texts) == count:
                    return texts
                texts.append(json.loads(line)["text"][:_DOCUMENT_CHARACTERS])
    return texts


def _kl(expected: np.ndarray, ids: list[int], found: np.ndarray) -> float:
    """KL in nats between `expected` [vocabulary] and `found` at `ids`, everything else taken as one bucket."""
    import numpy as np

    top = expected[ids]
    total = float(np.sum(np.exp(top) * (top - found)))
    rest = 1.0 - float(np.exp(top).sum())
    if len(ids) < len(expected) and rest > 0:
        total += rest * (math.log(rest) - math.log(max(1.0 - float(np.exp(found).sum()), math.exp(_LOWEST))))
    return total


def lost_in_softmax(logprobs: np.ndarray) -> float:
    """By how much llama.cpp's log-probabilities of this distribution [vocabulary] are all too high, in nats.

    It adds up its softmax in fp32 from the likeliest token down, so of a large vocabulary the tail is lost: up to
    3e-4 of SmolLM2's 49,152 entries. Where the bucket of tokens that were not asked for is smaller than that, nothing
    would be left for it, and the KL of an exact f32 file came to 9e-3. The fp32 model's own distribution says how much.
    """
    import numpy as np

    probabilities = np.exp(np.sort(logprobs)[::-1] - logprobs.max())
    added = np.cumsum(probabilities.astype(np.float32), dtype=np.float32)[-1]
    return float(np.log(probabilities.sum() / added))


def _loss(token: int, expected: np.ndarray, ids: list[int], found: np.ndarray) -> tuple[float, float]:
    """Log-probability of `token` in the fp32 model and in the GGUF."""
    import numpy as np

    if token in ids:
        return float(expected[token]), float(found[ids.index(token)])
    left = len(expected) - len(ids)
    rests = (1.0 - float(np.exp(side).sum()) for side in (expected[ids], found))
    before, after = (math.log(max(rest, math.exp(_LOWEST)) / left) for rest in rests)
    return before, after


def _check_thresholds(
    kind: str, result: dict[str, Any], held_out: HeldOut, kls: list[float], agree: list[bool], spread: list[float]
) -> None:
    def at(index: int) -> str:
        sequence, length = held_out.prefixes[index]
        return f"held-out sequence {sequence}, position {length}"

    if not result["kl"] <= result["max_kl"]:  # a NaN fails too
        worst = max(range(len(kls)), key=kls.__getitem__)
        raise ParityError(
            f"{kind}: mean KL {result['kl']:.3g} nats is above proof.max_kl.{kind} = {result['max_kl']:g}; worst at "
            f"{at(worst)}: {result['kl_worst']:.3g}"
        )
    if result["max_logit"] is not None and not result["logit_difference"] <= result["max_logit"]:
        first = next(i for i, value in enumerate(spread) if not value <= result["max_logit"])
        raise ParityError(
            f"{kind}: logits differ by {spread[first]:.3g} at {at(first)} (worst {result['logit_difference']:.3g}); "
            f"proof.max_logit.{kind} is {result['max_logit']:g}"
        )
    if not result["top1"] >= result["min_top1"]:
        raise ParityError(
            f"{kind}: top-1 agreement {result['top1']} is below proof.min_top1.{kind} = {result['min_top1']}; first "
            f"other token at {at(agree.index(False))}"
        )


def _prompts(reference: Reference, held_out: HeldOut, proof: Proof, context: int) -> Iterator[list[int]]:
    """Half rendered conversations, half openings of held-out sequences; cut so that the answer fits the context."""
    room = max(1, context - proof.greedy_tokens - 1)
    talks = conversations()
    for index in range(proof.greedy_prompts):
        source = held_out.sequences[index // 2 % len(held_out.sequences)]
        prompt = source[: max(2, len(source) // 3)] if index % 2 else reference.render(talks[index // 2 % len(talks)])
        yield prompt[:room]


def _gaps(reference: Reference, prompt: list[int], found: list[int], asked: int) -> list[_Gap]:
    """Where `found` leaves the fp32 model's greedy path, in order."""
    logprobs = reference.logprobs([*prompt, *found])[len(prompt) - 1 :]
    gaps = []
    for position, (row, token) in enumerate(zip(logprobs, found, strict=False)):
        best = int(row.argmax())
        if token in reference.end_ids and position < len(found) - 1:
            gaps.append(_Gap(math.inf, f"no stop after token {token} at position {position}"))
        elif best != token:
            gaps.append(_Gap(float(row[best] - row[token]), f"token {token} instead of {best} at position {position}"))
    ended = bool(found) and found[-1] in reference.end_ids
    if len(found) < asked and not ended:
        row = logprobs[len(found)]
        nats = float(row.max() - max(row[end] for end in reference.end_ids))
        gaps.append(_Gap(nats, f"a stop instead of token {int(row.argmax())} at position {len(found)}"))
    return gaps


def _text_difference(expected: str, found: str) -> str:
    pairs = zip(expected, found, strict=False)
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    near = slice(max(0, position - 10), position + 20)
    return (
        f"first difference at character {position}: transformers {expected[near]!r}, llama.cpp {found[near]!r} "
        f"(around character {near.start})"
    )


def _rounded(value: float) -> float:
    """Nine decimals: fp32 rounding is below them."""
    return round(max(value, 0.0), 9) if math.isfinite(value) else value
