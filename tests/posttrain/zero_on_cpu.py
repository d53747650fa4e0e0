"""One rank of a step under DeepSpeed on CPUs: `python -m tests.posttrain.zero_on_cpu --job FILE`.

DeepSpeed 0.19 runs on CPUs with `DS_ACCELERATOR=cpu` and gloo. It would compile an operator for shared memory first,
for minutes; gloo does the same without. Everything else is the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed.comm.torch as communication

from acorn.worker import work


def main(job: Path) -> None:
    communication.build_shm_op = lambda: None
    work(job)


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
