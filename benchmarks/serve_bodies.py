"""How long others wait while a server reads the largest bodies that it takes: the longest answer of /health meanwhile.

    acorn serve REF --port 8000 &
    python -m benchmarks.serve_bodies --url http://127.0.0.1:8000

One client asks for /health again and again while another sends bodies of 8 MB: plain text, text full of escapes, and
JSON with as many values as fit. "quiet" is the longest answer in as long a time without such a body.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from urllib.parse import urlsplit

SIZE = (8 << 20) - 1000
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASK = b'"messages":[{"role":"user","content":"So?"}],"max_tokens":1'


def filled(head: bytes, unit: bytes, tail: bytes) -> bytes:
    return head + unit * ((SIZE - len(head) - len(tail)) // len(unit)) + tail


def bodies() -> dict[str, tuple[str, bytes]]:
    """Path and body of each kind."""
    message = b'{"role":"user","content":"' + b"How many keys? " * 34 + b'"}'
    schema = b'"tools":[{"type":"function","function":{"name":"f","parameters":{"enum":['
    return {
        "text": (COMPLETIONS, filled(b'{"prompt":"', b"How many keys? ", b'"}')),
        "escapes": (COMPLETIONS, filled(b'{"prompt":"', rb"\"a\": [1, 2],\n", b'"}')),
        "messages": (CHAT, b'{"messages":[' + b",".join([message] * (SIZE // (len(message) + 1))) + b"]}"),
        "token ids": (COMPLETIONS, filled(b'{"prompt":[', b"1,", b"1]}")),
        "prompts": (COMPLETIONS, filled(b'{"prompt":[', b'"a",', b'"a"]}')),
        "lists": (CHAT, filled(b"{" + ASK + b',"metadata":{"a":[', b"[],", b"1]}}")),
        "a schema": (CHAT, filled(b"{" + ASK + b"," + schema, b'"a",', b'"a"]}}}]}')),
    }


def longest_wait(url: str, work: Callable[[], None]) -> float:
    """Seconds of the slowest /health until `work` is done."""
    connection, waits = _connect(url), []
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        begun = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        waits.append(time.perf_counter() - begun)
        time.sleep(0.002)
    return max(waits)


def send(url: str, path: str, body: bytes, statuses: list[int]) -> None:
    connection = _connect(url)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    statuses.append(connection.getresponse().status)


def _connect(url: str) -> HTTPConnection:
    return HTTPConnection(urlsplit(url).netloc, timeout=300)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    figures = {"quiet": [longest_wait(given.url, lambda: time.sleep(1)) for _ in range(given.rounds)]}
    for kind, (path, body) in bodies().items():
        statuses: list[int] = []
        work = partial(send, given.url, path, body, statuses)
        figures[kind] = [longest_wait(given.url, work) for _ in range(given.rounds)]
        print(f"{kind}: {_ms(figures[kind])}, answered {statuses[-1]}")
    print(f"quiet: {_ms(figures['quiet'])}")
    medians = {
        f"{kind}_ms".replace(" ", "_"): round(1000 * statistics.median(found), 1) for kind, found in figures.items()
    }
    worst = max(statistics.median(found) for kind, found in figures.items() if kind != "quiet")
    print(json.dumps({"benchmark": "serve_bodies", **medians, "longest_stall_ms": round(1000 * worst, 1)}))


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms (median of {len(seconds)}; {1000 * max(seconds):.0f} at most)"


if __name__ == "__main__":
    main()
