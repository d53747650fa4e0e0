"""One server for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.servers import Running, running, settings_of


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Running]:
    with running(settings_of(tiny_model)) as server:
        yield server
