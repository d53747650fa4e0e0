"""The process that compares answers with math-verify: a line `["gold", "answer"]` in, `true` or `false` out.

`acorn.answers` starts it and kills it when an answer takes too long, so the limits of math-verify 0.5 (signals) are
off. What math-verify cannot parse is equal to nothing.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    # Libraries print; only replies may reach the pipe.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from math_verify import parse, verify

    def same(first: str, second: str) -> bool:
        gold, answer = (parse(f"${text}$", parsing_timeout=0) for text in (first, second))
        return bool(gold and answer and verify(gold, answer, timeout_seconds=0))

    same("x", r"\frac{x^2}{x}")  # what is imported at the first use must not count against the first answer
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        first, second = json.loads(line)
        try:
            equal = same(first, second)
        except Exception as error:  # sympy raises anything on what models write; the reason is kept in the log
            print(f"math-verify on {first!r} and {second!r}: {type(error).__name__}: {error}", file=sys.stderr)
            equal = False
        print("true" if equal else "false", file=replies, flush=True)


if __name__ == "__main__":
    main()
