"""The process that compares results with math-verify: a line `["gold", "result"]` in, `true` or `false` out.

Started by `synth.results` and killed when one comparison takes too long: math-verify's own limits are signals, which
cannot interrupt a loop in sympy's C code. What math-verify cannot parse equals nothing.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print; only replies may reach the pipe.
    from math_verify import parse, verify

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        gold, result = json.loads(line)
        try:
            parsed = [parse(f"${text}$", parsing_timeout=0) for text in (gold, result)]
            equal = all(parsed) and bool(verify(*parsed, timeout_seconds=0))
        except Exception as error:  # sympy raises anything on what models write
            print(f"math-verify on {result!r}: {type(error).__name__}: {error}", file=sys.stderr)
            equal = False
        print("true" if equal else "false", file=replies, flush=True)


if __name__ == "__main__":
    main()
