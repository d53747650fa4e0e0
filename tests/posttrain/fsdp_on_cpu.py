"""One rank of a step under FSDP2 on CPUs: `python -m tests.posttrain.fsdp_on_cpu --job FILE`.

accelerate 1.15 shards on accelerators alone; told that gloo is one, and with ACCELERATE_TORCH_DEVICE=cpu, it shards on
CPUs too. Everything after that choice is the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from acorn.worker import work
from posttrain import trl


def main(job: Path) -> None:
    arguments = trl.trl_arguments
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

    def without_use_cpu(job: Any) -> dict[str, Any]:
        return {**arguments(job), "use_cpu": False, "dataloader_pin_memory": False}

    trl.trl_arguments = without_use_cpu
    work(job)


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
