"""Tokens of a conversation that grows by a turn: with its old segments kept, and tokenised anew each time.

`python -m benchmarks.serve_tokenise [--tokenizer FOLDER] [--lengths 1000,10000,50000]`

The conversation is turns of about 100 tokens between special tokens; what is timed is the prompt of its last turn,
which the server has not seen, after all the others, which it has. Ids are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.models import make_llama
from serve.tokenizer import TextTokenizer


def conversation(turns: int) -> str:
    draw = random.Random(0)

    def words() -> str:
        return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(30))

    return "".join(f"<end>{words()}" for _ in range(turns))


def seconds(function: Any, repeats: int = 5) -> float:
    """Best of several."""
    best = float("inf")
    for number in range(repeats):
        started = time.perf_counter()
        function(number)
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer.json that knows <end>")
    options.add_argument("--lengths", default="1000,10000,50000")
    given = options.parse_args()
    figures: dict[str, Any] = {"benchmark": "serve_tokenise"}
    with tempfile.TemporaryDirectory(prefix="acorn-tokenise-") as scratch:
        tokenizer = TextTokenizer.from_folder(given.tokenizer or make_llama(Path(scratch), 64, 1))
        per_turn = len(tokenizer.encode(conversation(10))) // 4 / 10
        for length in map(int, given.lengths.split(",")):
            old = conversation(round(length / per_turn))
            tokenizer.encode(old)
            news = [old + f"<end>{number} and what is new now" for number in range(5)]
            kept = seconds(lambda number: tokenizer.encode(news[number]))  # noqa: B023
            anew = seconds(lambda number: tokenizer.encode(news[number], cache=False))  # noqa: B023
            assert all(tokenizer.encode(new) == tokenizer.encode(new, cache=False) for new in news)
            print(f"{length:>8} tokens: kept {kept * 1e3:8.3f} ms, anew {anew * 1e3:8.2f} ms, {anew / kept:6.1f}x")
            figures |= {f"ms_{length}": round(kept * 1e3, 3), f"speedup_{length}": round(anew / kept, 1)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
