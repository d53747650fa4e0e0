from __future__ import annotations

import os

import pytest


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync without waiting for the disk: a killed process loses nothing the kernel has, only a power cut would."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
