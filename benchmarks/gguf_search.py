"""One search on llama.cpp beside the same on torch: time and solved problems, by two servers of one model.

    python -m benchmarks.gguf_search MODEL_FOLDER FILE.gguf PRM_FOLDER problems/test.jsonl [--problems 20] [--n 16]

Both servers run at once and are asked in turn, problem by problem, so that what else the machine does meets both alike.
CPU seconds are those of a server's processes; a second seed tells how far the draws alone move the solved share.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil


@dataclass
class Server:
    """One of the two, and what it did."""

    name: str
    url: str
    pid: int
    solved: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def ask(self, question: str, answer: str, search: dict[str, Any], seed: int, given: argparse.Namespace) -> None:
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": given.max_tokens,
            "temperature": given.temperature,
            "seed": seed,
            "search": search,
        }
        used, begun = self._cpu(), time.perf_counter()
        reply = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=1200).raise_for_status().json()
        self.seconds.append(time.perf_counter() - begun)
        self.cpu.append(self._cpu() - used)
        self.tokens.append(reply["search"]["spent"]["generated"])
        self.solved.append(reply["search"]["answer"] == answer)

    def figures(self) -> dict[str, float]:
        return {
            f"{self.name}_solved": round(sum(self.solved) / len(self.solved), 3),
            f"{self.name}_seconds": round(sum(self.seconds) / len(self.seconds), 2),
            f"{self.name}_cpu_seconds": round(sum(self.cpu) / len(self.cpu), 2),
            f"{self.name}_tokens": round(sum(self.tokens) / len(self.tokens)),
        }

    def _cpu(self) -> float:
        front = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (front, *front.children(recursive=True))]
        return sum(one.user + one.system for one in times)


def start(stack: ExitStack, name: str, model: Path, given: argparse.Namespace) -> Server:
    """`acorn serve`, which answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "acorn", "serve", str(model), "--port", str(port)]
    command += ["--verifier", str(given.verifier), "--threads", str(given.threads), "--rows", str(given.rows)]
    process = stack.enter_context(subprocess.Popen(command, stderr=None if given.log else subprocess.DEVNULL))
    stack.callback(process.terminate)
    server = Server(name, f"http://127.0.0.1:{port}", process.pid)
    until = time.monotonic() + 300
    while True:
        try:
            httpx.get(f"{server.url}/health").raise_for_status()
            return server
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server of {model} does not answer; --log shows why") from None
            time.sleep(0.2)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "gguf", "verifier", "file"):
        options.add_argument(name, type=Path)
    options.add_argument("--problems", type=int, default=20)
    options.add_argument("--method", default="best_of_n")
    options.add_argument("--n", type=int, default=16)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--max-tokens", type=int, default=192)
    options.add_argument("--temperature", type=float, default=0.8)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rows", type=int, default=16)
    options.add_argument("--log", action="store_true", help="show what the servers print")
    given = options.parse_args()
    problems = [json.loads(line) for line in given.file.read_text(encoding="utf-8").splitlines()]
    problems = problems[:: max(1, len(problems) // given.problems)][: given.problems]
    search = {"method": given.method, "n": given.n, "max_step_tokens": 48}
    with ExitStack() as stack:
        servers = [start(stack, "torch", given.model, given), start(stack, "llamacpp", given.gguf, given)]
        for server in servers:  # the first search loads the verifier
            warm = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 8, "search": {"n": 1}}
            httpx.post(f"{server.url}/v1/chat/completions", json=warm, timeout=600).raise_for_status()
        for seed in range(given.seeds):
            for number, problem in enumerate(problems):
                for server in servers if (seed + number) % 2 == 0 else servers[::-1]:
                    server.ask(problem["question"], problem["answer"], search, 1000 * seed + number, given)
    figures: dict[str, Any] = {"benchmark": "gguf_search", "method": given.method, "n": given.n}
    for server in servers:
        by_seed = [sum(server.solved[at : at + len(problems)]) for at in range(0, len(server.solved), len(problems))]
        print(f"{server.name}: solved {by_seed} of {len(problems)} by seed")
        figures |= server.figures()
    figures["cpu_ratio"] = round(figures["torch_cpu_seconds"] / figures["llamacpp_cpu_seconds"], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
