"""One server for all tests that leave it as they found it, and one for those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.settings import Network
from tests.serve.servers import POSITIONS, Running, endless_model, running, settings_of


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Running]:
    # A budget that lets a search run for long: on any machine one can still be seen running.
    with running(settings_of(tiny_model, search_budget=1 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One row, one place to wait, a key, and a model that goes on and on; its worker may be killed."""
    network = Network(port=0, api_key="secret", max_body=20_000)
    model = endless_model(tiny_model, tmp_path_factory.mktemp("guarded") / "model")
    sizes = {"context": POSITIONS, "kv_tokens": POSITIONS + 8192, "rows": 1, "max_waiting": 1}
    with running(settings_of(model, **sizes), network) as server:
        yield server
