"""A server under steady mixed load: does its memory stay flat, and does anything go wrong?

    acorn serve REF --port 8000 &
    python -m benchmarks.serve_soak --url http://127.0.0.1:8000 --pid $! --minutes 10

Clients hold conversations of growing length, some streamed, some left in the middle, some with a stop string or log
probabilities, and begin new ones. Resident memory of the server's processes is noted every second, with the requests
begun so far. The growth is that of the second half of the time, between the medians of its first and its last quarter,
in MB and for each request between them. The first half is for caches to fill; where it had too few requests for that,
`warmed_up` is false and the growth that of caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import psutil

WARM_UP = 8000
"""Requests after which the front's tokenised text, 8 MB of it, and the pieces of words that tokenizers keeps are all
there: about 6,000."""
WORDS = ("Tom", "Mia", "buys", "lends", "finds", "keys", "pens", "apples", "3", "14", "9", "after that", "how many")


async def hold_conversations(url: str, until: float, seed: int, counts: Counter[str]) -> None:
    """One client."""
    draw = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        messages: list[dict[str, str]] = []
        while time.monotonic() < until:
            if not messages or draw.random() < 0.15:
                messages = [{"role": "system", "content": _text(draw, 40)}]
            messages.append({"role": "user", "content": _text(draw, draw.randint(3, 60))})
            body = {"messages": messages, "max_tokens": draw.randint(1, 40), "stream": draw.random() < 0.5}
            body |= draw.choice(({}, {"stop": ["e"]}, {"logprobs": True}, {"cache": False}, {"n": 2}, {"seed": 1}))
            answer = await _ask(client, body, leave=draw.random() < 0.15, counts=counts)
            if answer is None:
                messages = []
            else:
                messages.append({"role": "assistant", "content": answer})


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], leave: bool, counts: Counter[str]) -> str | None:
    """The answer; None if it was left, or the conversation no longer fits."""
    counts["requests"] += 1
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        counts[str(answer.status_code)] += 1
        if answer.status_code != 200:
            await answer.aread()
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["Retry-After"]))
            return None
        if not body["stream"]:
            content = json.loads(await answer.aread())["choices"][0]["message"]["content"]
            return str(content)
        text = ""
        async for line in answer.aiter_lines():
            if leave:
                counts["left"] += 1
                return None
            if line.startswith("data: {"):
                part = json.loads(line[6:])
                if "error" in part:
                    counts["error in stream"] += 1
                    return None
                text += "".join(choice["delta"].get("content") or "" for choice in part["choices"])
        return text


def memory_of(pid: int) -> dict[str, float]:
    """Resident MB of the server's front and its worker."""
    front = psutil.Process(pid)
    family = {
        "front": front,
        **{f"worker {number}": child for number, child in enumerate(front.children(recursive=True))},
    }
    return {name: process.memory_info().rss / 1e6 for name, process in family.items()}


Sample = tuple[int, dict[str, float]]
"""Requests so far, and what `memory_of` finds."""


async def watch(pid: int, until: float, counts: Counter[str]) -> list[Sample]:
    samples = []
    while time.monotonic() < until:
        samples.append((counts["requests"], memory_of(pid)))
        await asyncio.sleep(1)
    return samples


def growth(series: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """MB, and kB for each request, that (requests so far, MB) grow by in the second half of `series`."""
    late = series[len(series) // 2 :]
    quarter = max(1, len(late) // 4)
    begin, end = (
        [statistics.median(column) for column in zip(*part, strict=True)] for part in (late[:quarter], late[-quarter:])
    )
    grown = end[1] - begin[1]
    return grown, 1000 * grown / max(1.0, end[0] - begin[0])


async def soak(url: str, pid: int, seconds: float, clients: int) -> tuple[list[Sample], Counter[str]]:
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    samples, *_ = await asyncio.gather(
        watch(pid, until, counts), *(hold_conversations(url, until, seed, counts) for seed in range(clients))
    )
    return samples, counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--pid", type=int, required=True, help="of `acorn serve`")
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--clients", type=int, default=8)
    given = options.parse_args()
    samples, counts = asyncio.run(soak(given.url, given.pid, 60 * given.minutes, given.clients))
    figures: dict[str, Any] = {"benchmark": "serve_soak", "minutes": given.minutes, "answers": dict(counts)}
    before = samples[len(samples) // 2][0]
    figures["warmed_up"] = before >= WARM_UP
    if before < WARM_UP:
        print(
            f"caches were still filling: {before} requests in the first half, {WARM_UP} are needed; let it run longer"
        )
    for name in samples[-1][1]:
        series = [(requests, memory[name]) for requests, memory in samples if name in memory]
        grown, each = growth(series)
        print(f"{name}: {series[-1][1]:.1f} MB, {grown:+.1f} MB in the second half, {each:+.3f} kB a request")
        key = name.replace(" ", "_")
        figures |= {f"{key}_growth_mb": round(grown, 2), f"{key}_growth_kb_per_request": round(each, 3)}
    print(", ".join(f"{key}: {count}" for key, count in sorted(counts.items())))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
