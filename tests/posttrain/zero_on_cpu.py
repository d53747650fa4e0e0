"""One rank of a step under DeepSpeed on CPUs: `python -m tests.posttrain.zero_on_cpu --job FILE`.

DeepSpeed 0.19 runs on CPUs with `DS_ACCELERATOR=cpu` and gloo. It would compile an operator for shared memory first,
for minutes, and a run killed meanwhile leaves a lock on which every later one waits; gloo does the same without it.
Everything else is the real thing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from acorn.worker import work


def main(job: Path) -> None:
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # `deepspeed.comm.torch` itself is torch
    work(job)


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
