from __future__ import annotations

import time
from pathlib import Path

from registry.locks import Locks
from tests.registry.world import kill, start, wait_for


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    locks = Locks(tmp_path)

    def hold() -> None:
        with locks.holding("x"):
            (tmp_path / "held").touch()
            time.sleep(600)

    holder = start(hold)
    wait_for((tmp_path / "held").exists)
    assert locks.try_acquire("x") is None and locks.held() == {"x"}
    kill(holder)
    with locks.holding("x"):
        assert locks.held() == {"x"}
    assert locks.held() == set()


def test_shared_holders_do_not_exclude_each_other(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    with locks.holding("x", shared=True), locks.holding("x", shared=True):
        assert locks.try_acquire("x") is None
    with locks.holding("x"):
        assert locks.try_acquire("x", shared=True) is None


def test_removing_a_lock_file_never_gives_two_holders(tmp_path: Path) -> None:
    locks, inside, overlaps = Locks(tmp_path / "locks"), tmp_path / "inside", tmp_path / "overlaps"

    def contend() -> None:
        for _ in range(100):
            with locks.holding("x"):
                try:
                    inside.touch(exist_ok=False)
                except FileExistsError:
                    overlaps.touch()
                inside.unlink(missing_ok=True)
            locks.forget("x")

    from tests.registry.world import wait

    assert [wait(pid) for pid in [start(contend) for _ in range(6)]] == [0] * 6
    assert not overlaps.exists()
