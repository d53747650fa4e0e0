"""Requests that nobody should send, thousands of them, at a running server: none may be answered 5xx.

    acorn serve REF --port 8000 &
    python -m benchmarks.serve_fuzz --url http://127.0.0.1:8000 --requests 10000

Bodies are valid ones with fields replaced, added, removed and nested, cut-off and broken JSON, odd bytes, other
methods, paths and headers; a part of the streams is left in the middle. At the end the server must be healthy,
and its worker must be the one it was; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
from tqdm import tqdm

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 1e308, -0.0, 0.5, "", "x", "\x00", "\u202e", "🌰" * 50),
    *([], {}, [[]], [None], {"a": {"b": {"c": []}}}, "NaN", "true", "1", [1, 2, 3], ["a"] * 40, {"type": "object"}),
    *({"type": "json_object"}, {"type": "json_schema"}, {"type": "function"}, {"include_usage": True}),
]
FIELDS = (
    *("model", "messages", "prompt", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "stream", "cache"),
    *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format"),
    *("stream_options", "logit_bias", "frequency_penalty", "search", "echo", "suffix", "user", "metadata", "wrong"),
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/models", "/v1/embeddings", "/", "/metrics")


@dataclass(frozen=True)
class Shot:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    leave: bool
    """Close the connection after the first bytes of the answer."""


def make_shot(draw: random.Random) -> Shot:
    """A request that is wrong in a few ways, or now and then right."""
    path = draw.choice(PATHS[:3]) if draw.random() < 0.9 else draw.choice(PATHS)
    body = _valid(draw, path)
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        _spoil(draw, body)
    data = json.dumps(body).encode()
    if draw.random() < 0.15:
        data = _break(draw, data)
    headers = {"Content-Type": "application/json"}
    if draw.random() < 0.05:
        headers["Content-Type"] = draw.choice(("text/plain", "application/x-www-form-urlencoded", "", "a/b; c=\u00e9"))
    method = "POST" if draw.random() < 0.97 else draw.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
    return Shot(method, path, data, headers, leave=draw.random() < 0.1)


def _valid(draw: random.Random, path: str) -> dict[str, Any]:
    if path == "/tokenize":
        return {"text": "How many keys?"}
    common = {"max_tokens": draw.randint(1, 4), "stream": draw.random() < 0.4, "temperature": draw.random()}
    if path == "/v1/completions":
        return {"prompt": "Tom has " * draw.randint(1, 9), **common}
    turns = [
        {"role": draw.choice(("user", "assistant", "system")), "content": "So?"} for _ in range(draw.randint(1, 4))
    ]
    # Fields with an inside, to be spoilt there.
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": schema}}
    extra: list[dict[str, Any]] = [
        {"search": {"method": "majority", "n": 2, "budget": 16, "verifier": "x"}},
        {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
    ]
    return {"messages": turns, **common, **(_copy(draw.choice(extra)) if draw.random() < 0.3 else {})}


def _spoil(draw: random.Random, value: Any) -> None:
    """Change something in `value`, at any depth."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if isinstance(value, dict) and (not keys or draw.random() < 0.4):
        value[draw.choice(FIELDS)] = _copy(draw.choice(ODD))
        return
    if not keys:
        return
    key = draw.choice(keys)
    if isinstance(value[key], dict | list) and draw.random() < 0.6:
        _spoil(draw, value[key])
    elif draw.random() < 0.2:
        del value[key]
    else:
        value[key] = _copy(draw.choice(ODD))


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _break(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return draw.choice(
        (
            data[:at],
            data[:at] + bytes([draw.randrange(256)]) + data[at:],
            data.replace(b"}", b",}", 1),
            b"[" * 5000,
            b'{"messages":' * 300,
            data[:at] + b"\\ud800" + data[at:],
            b"NaN",
            b"",
        )
    )


async def fire(client: httpx.AsyncClient, shot: Shot) -> int:
    """The status of the answer; 0 where the request could not even be sent."""
    try:
        async with client.stream(shot.method, shot.path, content=shot.body, headers=shot.headers) as answer:
            async for _ in answer.aiter_bytes():
                if shot.leave:
                    break
            return answer.status_code
    except (httpx.LocalProtocolError, UnicodeEncodeError):
        return 0


async def bombard(url: str, shots: list[Shot], clients: int, key: str | None = None) -> Counter[int]:
    """How often each status came."""
    counts: Counter[int] = Counter()
    queue = iter(tqdm(shots, desc="fuzz", unit="request", disable=len(shots) < 1000))
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def work(client: httpx.AsyncClient) -> None:
        for shot in queue:
            status = await fire(client, shot)
            counts[status] += 1
            if status >= 500:
                print(status, shot)

    async with httpx.AsyncClient(base_url=url, timeout=120, headers=headers) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--api-key")
    given = options.parse_args()
    draw = random.Random(given.seed)
    before, started = _restarts(given.url, given.api_key), time.perf_counter()
    shots = [make_shot(draw) for _ in range(given.requests)]
    counts = asyncio.run(bombard(given.url, shots, given.clients, given.api_key))
    seconds = time.perf_counter() - started
    for status, count in sorted(counts.items()):
        print(f"{status or 'not sent'}: {count}")
    faults = sum(count for status, count in counts.items() if status >= 500)
    restarts = _restarts(given.url, given.api_key) - before
    healthy = httpx.get(f"{given.url}/health", timeout=60).status_code == 200
    figures = {"requests": given.requests, "server_errors": faults, "worker_restarts": restarts, "healthy": healthy}
    print(json.dumps({"benchmark": "serve_fuzz", **figures, "seconds": round(seconds, 1)}))
    if faults or restarts or not healthy:
        raise SystemExit(1)


def _restarts(url: str, key: str | None) -> int:
    """Of the server's worker, since the server began."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    lines = httpx.get(f"{url}/metrics", headers=headers, timeout=60).text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("acorn_worker_restarts "))))


if __name__ == "__main__":
    main()
