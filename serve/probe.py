"""What only a clock can say: the worker times a few forward passes and settles what `serve.zero` left open.

Before loading, one layer's matrices on a CPU, with fewer threads and in both dtypes: what bfloat16 gains depends on the
processor (some multiply it in hardware, others convert number by number). After loading, one prompt and one decode step
through the engine's own cache. Together well below a second for models that a CPU is right for.

Timings differ from run to run, so borders are powers of two and a dtype must win clearly; what is settled is kept when
a worker is started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import prod
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from engine.cache import KVTree, free_memory
from engine.limits import ram
from serve.settings import Settings
from serve.sizes import ModelSize, folder_size
from serve.zero import MOST_CONTEXTS, ROW, SHARE, UNKNOWN_CONTEXT, context_of, gb, waiting

STALL = 0.2
"""Seconds that the rows being decoded may wait for a chunk of somebody's prompt, and for a step of their own."""
CHUNKS = (32, 2048)
ROWS = (8, 256)
"""The least, however slow: whoever is let in waits for steps, whoever is not for the end of somebody's answer."""
STEPS = 3
CLEARLY = 1.25
"""bfloat16 is taken where it is so much faster than float32: float32 keeps a batch from changing a row's tokens."""
SAME = 1.2
"""Products of two timings this close are no difference."""
TIMED = 64 << 20
"""Bytes of float32 matrices timed, at most."""
MASKS = 1 / 8
"""Of free memory, for one chunk's mask and activations."""


def before_loading(settings: Settings) -> Settings:
    """With the threads and the dtype that are fastest here, for a model folder on a CPU; fields that are fixed stay.

    The dtype is never less precise than the files: float32 weights stay float32, and the reason says what bfloat16
    would gain. Sets torch's number of threads.
    """
    if settings.device != "cpu":
        return settings
    size = folder_size(settings.model)
    shapes = _shapes(size)
    settings = _threads(settings, shapes)
    torch.set_num_threads(settings.threads)
    if settings.dtype != "float32" or "dtype" not in settings.unsettled or not shapes:
        return settings
    # A decode step and a chunk of a prompt, the geometric mean.
    gains = [
        _multiply(shapes, tokens, torch.float32) / _multiply(shapes, tokens, torch.bfloat16) for tokens in (4, 128)
    ]
    gain = (gains[0] * gains[1]) ** 0.5
    times = f"bfloat16 is {gain:.1f} times as fast as float32 here"
    if size.dtype == "float32":
        return _with(settings, "dtype", "float32", f"the dtype of the files; {times}")
    if gain >= CLEARLY:
        return _with(settings, "dtype", "bfloat16", times)
    return _with(settings, "dtype", "float32", f"exact for {size.dtype} weights, and {times}")


def _threads(settings: Settings, shapes: list[tuple[int, int]]) -> Settings:
    """The fewest threads that are about as fast as any: all wait for the slowest, which on busy cores may take long."""
    if "threads" not in settings.unsettled or settings.threads == 1 or not shapes:
        return settings
    before = torch.get_num_threads()
    seconds = {}
    for threads in sorted({1, max(1, settings.threads // 2), settings.threads}):
        torch.set_num_threads(threads)
        # The mean: what makes threads slow is waiting for one another, which the fastest call happens not to.
        seconds[threads] = prod(_multiply(shapes, tokens, torch.float32, mean) for tokens in (4, 128))
    torch.set_num_threads(before)
    fewest = next(threads for threads, taken in seconds.items() if taken <= SAME * min(seconds.values()))
    if fewest == settings.threads:
        return settings
    slower = (seconds[settings.threads] / seconds[fewest]) ** 0.5
    return _with(settings, "threads", fewest, f"{settings.threads} threads take {slower:.1f} times as long here")


@torch.inference_mode()
def settle(settings: Settings, tree: KVTree, reserve: int = 0) -> Settings:
    """With chunk, rows and cache as this machine runs the loaded model; fields that are fixed stay.

    `reserve`: bytes that are still to be taken by others, such as a verifier. Raises ValueError where memory has
    become too small since the files were looked at.
    """
    vocab = tree.model.get_input_embeddings().weight.shape[0]
    few = max(1, min(8, tree.context // 2))
    ids = torch.randint(vocab, (8, few), generator=torch.Generator().manual_seed(0)).tolist()
    _, prefixes = tree.extend([None] * 8, ids)  # warms up
    prompt = [token % vocab for token in range(max(1, min(64, tree.context - 1)))]
    per_token = _seconds(lambda: tree.extend([None], [prompt])) / len(prompt)
    one = _seconds(lambda: _decode(tree, prefixes[:1])) / STEPS
    eight = max(one, _seconds(lambda: _decode(tree, prefixes)) / STEPS)
    settings = _memory(settings, tree, reserve)
    settings = _chunk(settings, tree, per_token)
    return replace(_rows(settings, one, eight, per_token), unsettled=())


def _memory(settings: Settings, tree: KVTree, reserve: int) -> Settings:
    """`kv_tokens` and `context` from what is really free now that the model is there."""
    if "kv_tokens" not in settings.unsettled:
        return settings
    each, cuda = tree.bytes_per_position, tree.device.type == "cuda"
    memory, what = free_memory(tree.device), "the GPU" if cuda else ram().what
    room = int(max(0, memory - reserve) * SHARE["cuda" if cuda else "cpu"]) // each
    least = 2 if "context" in settings.unsettled else settings.context
    if room < least:
        raise ValueError(
            f"with the model loaded, {what} has {gb(memory)} free, too little for a cache of {least} tokens of {each:,}"
            " bytes; free memory, or ask for a smaller --context"
        )
    positions = folder_size(settings.model).context or UNKNOWN_CONTEXT
    most = MOST_CONTEXTS * positions
    why = f"{MOST_CONTEXTS} whole contexts"
    if room < most:
        most, why = room, f"{SHARE['cuda' if cuda else 'cpu']:.0%} of what {what} has free with the model loaded"
    room = most
    settings = _with(settings, "kv_tokens", room, f"{gb(room * each)} at {each:,} bytes a token: {why}")
    return _with(settings, "context", *context_of(positions, room)) if "context" in settings.unsettled else settings


def _chunk(settings: Settings, tree: KVTree, per_token: float) -> Settings:
    if "chunk" not in settings.unsettled:
        return settings
    rate = f"prompts run at {1 / per_token:,.0f} tokens/s"
    chunk = min(_power(STALL / per_token), settings.context)
    # A chunk's mask over the whole context and its activations are the largest tensors of a pass.
    size = 4 * (settings.context + 4 * _width(tree))
    fits = _power(int(free_memory(tree.device) * MASKS) / size)
    if fits < chunk:
        return _with(settings, "chunk", fits, f"{rate}, but a longer one would need {gb(chunk * size)} at a time")
    return _with(settings, "chunk", chunk, f"{rate}: others wait for {chunk * per_token * 1000:.0f} ms at most")


def _rows(settings: Settings, one: float, eight: float, per_token: float) -> Settings:
    """Step times are taken as a line through those of one row and of eight.

    A row more costs at least what a token more of a prompt does. Without that, one slow measurement of a single row (a
    busy machine) would make rows free, and a server of a large model promise steps that it cannot take.
    """
    if "rows" not in settings.unsettled:
        return settings
    slope = max((eight - one) / 7, per_token)
    by_time = int(max(1, (max(STALL, 2 * one) - one) / slope + 1))
    by_memory = max(1, settings.kv_tokens // min(settings.context, ROW))
    rows = min(max(ROWS[0], 1 << (min(by_time, ROWS[1]).bit_length() - 1)), by_memory)
    times = f"a step takes {one * 1000:.1f} ms with one row, {eight * 1000:.1f} with eight"
    limit = "" if rows < by_memory else f"; the cache has {ROW} tokens for each"
    settings = _with(settings, "rows", rows, f"{times}{limit}")
    if "max_waiting" not in settings.unsettled:
        return settings
    return _with(settings, "max_waiting", waiting(rows), settings.reasons.get("max_waiting", ""))


def _shapes(size: ModelSize) -> list[tuple[int, int]]:
    """Matrices of one layer, as many as are quickly timed."""
    shapes: list[tuple[int, int]] = []
    for rows, columns in size.matrices:
        if shapes and sum(4 * one * other for one, other in [*shapes, (rows, columns)]) > TIMED:
            break
        shapes.append((rows, columns))
    return shapes


def _multiply(
    shapes: list[tuple[int, int]], tokens: int, dtype: torch.dtype, of: Callable[[list[float]], float] = min
) -> float:
    weights = [torch.full(shape, 0.01, dtype=dtype) for shape in shapes]
    inputs = [torch.full((tokens, shape[1]), 0.01, dtype=dtype) for shape in shapes]

    def run() -> list[Tensor]:
        return [torch.nn.functional.linear(x, weight) for x, weight in zip(inputs, weights, strict=True)]

    run()
    return _seconds(run, 5, of)


def _decode(tree: KVTree, prefixes: list[Any]) -> None:
    batch = tree.batch(prefixes, STEPS)
    ids_B1 = torch.zeros(len(prefixes), 1, dtype=torch.long, device=tree.device)
    for _ in range(STEPS):
        tree.run(batch, ids_B1)


def _seconds(call: Callable[[], Any], repeats: int = 2, of: Callable[[list[float]], float] = min) -> float:
    """Of the fastest of `repeats` calls: whatever else the machine does can only add. Or their mean."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return max(of(taken), 1e-9)


def _width(tree: KVTree) -> int:
    config = tree.model.config.get_text_config()
    hidden = int(config.hidden_size)
    return 8 * hidden + 3 * int(getattr(config, "intermediate_size", None) or 4 * hidden)


def _power(value: float) -> int:
    """The largest power of two that is at most `value`, within `CHUNKS`."""
    least, most = CHUNKS
    return 1 << (max(least, min(most, int(value))).bit_length() - 1)


def _with(settings: Settings, name: str, value: Any, why: str) -> Settings:
    return replace(settings, **{name: value}, reasons=settings.reasons | {name: why})
