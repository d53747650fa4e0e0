from __future__ import annotations

import os

import pytest
from tqdm import tqdm


@pytest.fixture(autouse=True)
def single_threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bars without their watching thread: these tests fork, and a fork copies only one thread."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync without waiting for the disk: a killed process loses nothing the kernel has, only a power cut would."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
