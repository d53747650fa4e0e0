"""TGI's long scenario: 20 prompts of 200,000 tokens together, 50 new tokens each, 10 clients; twice.

`python -m benchmarks.long_scenario [--scale 0.1] [--model FOLDER] [--servers acorn,llamacpp,transformers]`

Each server runs by itself with the same weights (a random Llama of 6.7M parameters unless `--model` says otherwise)
and the same number of threads, and is asked over /v1/chat/completions with streaming, as a user would. The second run
sends the same prompts: a server that kept them has little to do. `--scale 0.1` shortens the prompts to a tenth.

acorn: `acorn serve FOLDER` without a flag but the port and the threads. llamacpp: llama.cpp's server (xllamacpp) on an
F32 GGUF, ten slots with room for a prompt each, its own prompt cache of 8 GiB on. transformers: `transformers serve`,
with `transformers-cb` its continuous batching.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.models import make_llama

REQUESTS, TOKENS, CLIENTS, NEW = 20, 200_000, 10, 50


@dataclass
class Run:
    """One run of the scenario on one server."""

    seconds: float
    first_token: float
    """Mean over the requests."""
    new: int
    """Parts of streams with text, about the tokens."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--model", type=Path)
    options.add_argument("--servers", default="acorn,llamacpp,transformers")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--log", action="store_true", help="show what the servers print")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="acorn-long-") as scratch:
        length = int(TOKENS * given.scale / REQUESTS)
        folder = given.model or make_llama(Path(scratch) / "model", given.width, given.layers, length + 1024)
        prompts = make_prompts(folder, length)
        runs = {}
        for name in given.servers.split(","):
            with server(name, folder, Path(scratch), length, given) as url:
                runs[name] = [asyncio.run(scenario(url, str(folder), prompts)) for _ in range(2)]
            for number, run in enumerate(runs[name]):
                order = ("first", "second")[number]
                print(
                    f"{name:<16}{order:<8}{run.seconds:>8.2f} s{run.first_token:>8.2f} s to the first token", flush=True
                )
    report(runs, length)


def report(runs: dict[str, list[Run]], length: int) -> None:
    """Times relative to acorn's, and the line of JSON."""
    figures: dict[str, Any] = {"benchmark": "long_scenario", "prompt_tokens": length * REQUESTS}
    for name, (first, second) in runs.items():
        key = name.replace("-", "_")
        figures |= {f"{key}_first_s": round(first.seconds, 2), f"{key}_second_s": round(second.seconds, 2)}
        figures |= {f"{key}_second_first_token_s": round(second.first_token, 3), f"{key}_new": second.new}
        if name != "acorn" and "acorn" in runs:
            ratios = [other.seconds / own.seconds for other, own in zip((first, second), runs["acorn"], strict=True)]
            print(f"acorn is {ratios[0]:.2f}x as fast as {name} on the first run, {ratios[1]:.2f}x on the second")
            figures |= {f"first_vs_{key}": round(ratios[0], 2), f"second_vs_{key}": round(ratios[1], 2)}
    print(json.dumps(figures))


def make_prompts(folder: Path, length: int) -> list[str]:
    """Texts of about `length` tokens each; no two begin alike."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    draw = random.Random(1)
    prompts = []
    for number in range(REQUESTS):
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(length)]
        encoded = tokenizer.encode(f"{number} " + " ".join(words), add_special_tokens=False)
        prompts.append(tokenizer.decode(encoded.ids[:length]))
    return prompts


async def scenario(url: str, model: str, prompts: list[str]) -> Run:
    """All prompts by `CLIENTS` clients."""
    waiting, firsts, new = iter(prompts), [], 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal new
        for prompt in waiting:
            messages = [{"role": "user", "content": prompt}]
            body = {"model": model, "messages": messages, "max_tokens": NEW, "temperature": 0, "stream": True}
            begun, first = time.perf_counter(), None
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise RuntimeError(f"{url} answered {answer.status_code}: {(await answer.aread()).decode()[:500]}")
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    part = json.loads(line[6:])
                    if "error" in part:
                        raise RuntimeError(f"{url} broke off: {part['error']}")
                    if any(choice["delta"].get("content") for choice in part.get("choices", [])):
                        first = first or time.perf_counter() - begun
                        new += 1
            firsts.append(first if first is not None else time.perf_counter() - begun)

    started = time.perf_counter()
    # A new connection for each request: llama.cpp's server closes kept ones at moments of its own.
    fresh = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=fresh) as client:
        await asyncio.gather(*(work(client) for _ in range(CLIENTS)))
    return Run(time.perf_counter() - started, sum(firsts) / len(firsts), new)


@contextmanager
def server(name: str, folder: Path, scratch: Path, length: int, given: argparse.Namespace) -> Iterator[str]:
    """A server process that answers, by its URL; ended on leaving."""
    port = _free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    output = None if given.log else subprocess.DEVNULL
    with subprocess.Popen(
        command(name, folder, scratch, port, length, given.threads), env=environment, stdout=output, stderr=output
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(url, process)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def command(name: str, folder: Path, scratch: Path, port: int, length: int, threads: int) -> list[str]:
    """What starts a server."""
    if name == "acorn":
        return [sys.executable, "-m", "acorn", "serve", str(folder), "--port", str(port), "--threads", str(threads)]
    if name == "llamacpp":
        from export.gguf import write_gguf

        file = scratch / "f32.gguf"
        write_gguf(folder, file, "f32", {"name": "benchmark"})
        return [sys.executable, "-c", _LLAMA, str(file), str(port), str(length + NEW + 64), str(threads)]
    if name in ("transformers", "transformers-cb"):
        return [
            sys.executable,
            "-c",
            _TRANSFORMERS,
            str(folder),
            str(port),
            str(int(name.endswith("cb"))),
            str(threads),
        ]
    raise ValueError(f"there is no server '{name}'; choose among acorn, llamacpp, transformers, transformers-cb")


_LLAMA = f"""
import sys, time, xllamacpp
file, port, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = file
params.hostnames, params.port = ["127.0.0.1"], port
params.n_parallel = {CLIENTS}
params.n_ctx = {CLIENTS} * (-(-context // 256) * 256)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity = 1
server = xllamacpp.Server(params)
time.sleep(1e9)
"""
_TRANSFORMERS = """
import sys, torch
torch.set_num_threads(int(sys.argv[4]))
from transformers.cli.serve import Serve
Serve(sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]), continuous_batching=sys.argv[3] == "1", device="cpu")
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}; --log shows why")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code < 500:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer within {seconds:.0f} s; --log shows why")


if __name__ == "__main__":
    main()
