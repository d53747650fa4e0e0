"""What this machine can do: cores, memory, GPUs, library versions against the tested set."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil

from acorn.launch import available_cores, gpu_count
from acorn.provenance import library_versions
from acorn.tracking import wandb_mode

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def examine(home: Path) -> dict[str, str]:
    """Findings by name, in the order to read them."""
    parent = next(folder for folder in (home, *home.resolve().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    findings = {
        "cores": str(available_cores()),
        "memory": f"{psutil.virtual_memory().available / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB free",
        "CUDA GPUs": str(gpu_count()),
        "registry": f"{home} ({free / 1e9:.1f} GB free)",
        "Weights & Biases": wandb_mode(),
    }
    tested = tested_versions()
    for name, found in library_versions().items():
        wanted = tested.get(name)
        findings[name] = found if wanted in (None, found.split("+")[0]) else f"{found} (tested with {wanted})"
    return findings


def tested_versions() -> dict[str, str]:
    """name -> version of constraints.txt; empty where acorn is installed without its checkout."""
    if not CONSTRAINTS.exists():
        return {}
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", CONSTRAINTS.read_text(), flags=re.MULTILINE))
