"""A scripted server, for the session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Scripted:
    url: str
    log: Path

    def asked(self) -> list[str]:
        """Last turns of all requests so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()[1:]]

    def llm(self, **more: Any) -> dict[str, Any]:
        return {"type": "openai", "model": "m", "base_url": self.url, "timeout": 300, "max_retries": 0, **more}


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where the kernel gives no process namespaces of its own (some containers, Ubuntu's AppArmor)."""
    from synth.making_config import Sandbox
    from synth.sandbox import run_tests

    try:
        run_tests("", "", Sandbox())
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def scripted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    log = tmp_path_factory.mktemp("scripted") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted.py"))], stdout=file
        )
    try:
        while not log.read_text().endswith("\n"):
            assert server.poll() is None
        yield Scripted(f"http://127.0.0.1:{log.read_text().split()[0]}/v1", log)
    finally:
        server.kill()
        server.wait()
