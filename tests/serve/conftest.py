"""One server for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.servers import Running, running, settings_of


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Running]:
    # A budget that lets a search run for long: on any machine one can still be seen running.
    with running(settings_of(tiny_model, search_budget=1 << 20)) as server:
        yield server
