"""What accelerators can do at best: bf16 matrix products per second and memory, from the makers' data sheets.

Dense figures, without sparsity, at the boost clock and with fp32 accumulation. MFU is measured against them (Chowdhery
et al. 2022, arXiv:2204.02311, appendix B), as is time in `acorn plan --device`. No torch: `plan` must stay fast.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    """As `acorn plan --device` has it."""
    bf16_flops: float
    """Dense bf16 FLOP/s, at best."""
    memory_bytes: float
    driver_name: str
    """Regular expression for the name that the driver gives it."""


DEVICES = (
    # The first pattern that matches counts: the special ones stand first.
    Device("b200", 2250e12, 180e9, r"\bB200\b"),
    Device("h200", 989e12, 141e9, r"\bH200\b"),
    Device("h100-nvl", 835e12, 94e9, r"\bH100 NVL\b"),
    Device("h100-pcie", 756e12, 80e9, r"\bH100 PCIe\b"),
    Device("h100", 989e12, 80e9, r"\bH100\b"),
    Device("a100-40gb", 312e12, 40e9, r"\bA100.*40GB"),
    Device("a100", 312e12, 80e9, r"\bA100\b"),
    Device("l40s", 362e12, 48e9, r"\bL40S\b"),
    Device("l4", 121e12, 24e9, r"\bL4\b"),
    Device("a10g", 70e12, 24e9, r"\bA10G\b"),
    Device("a10", 125e12, 24e9, r"\bA10\b"),
    Device("rtx-5090", 209e12, 32e9, r"\bRTX 5090\b(?! Laptop)"),
    Device("rtx-4090", 165e12, 24e9, r"\bRTX 4090\b(?! Laptop)"),
    Device("rtx-3090", 71e12, 24e9, r"\bRTX 3090\b"),
)


def by_driver_name(name: str) -> Device | None:
    """The device that a driver calls `name` ("NVIDIA H100 80GB HBM3"); None for one that is not in the table."""
    return next((device for device in DEVICES if re.search(device.driver_name, name)), None)


def parse(text: str) -> tuple[Device, int]:
    """`h100:8` is eight H100. Raises ValueError with the names there are."""
    name, _, count = text.partition(":")
    known = {device.name: device for device in DEVICES}
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"unknown device {name!r}; {hint}known: {', '.join(sorted(known))}")
    if count and not (count.isdigit() and int(count)):
        raise ValueError(f"{text!r}: what follows the colon is a count of devices, at least 1")
    return known[name.lower()], int(count or 1)
