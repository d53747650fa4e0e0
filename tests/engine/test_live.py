"""Places of running sequences: each keeps its own, and all together stay within their memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.live import Live, LiveStore
from engine.prefix import Shape

SHAPE = Shape(2, 1, 1, 2)


def memory(store: LiveStore) -> int:
    """Positions that are held, for sequences or for the next ones."""
    return sum(slab.keys[:1].numel() for slab in store._slabs + store._spare)


@torch.inference_mode()
def put(live: Live, length: int, mark: int) -> None:
    live.length = length
    live.keys[:, :, :length] = mark
    live.values[:, :, :length] = -mark


@settings(max_examples=80, deadline=None)
@given(data=st.data())
@torch.inference_mode()
def test_a_place_keeps_its_tokens_whoever_comes_goes_and_grows(data: Any) -> None:
    store = LiveStore(SHAPE, torch.float32, torch.device("cpu"), data.draw(st.integers(64, 1500)), slab=256)
    lives: dict[int, Live] = {}
    for mark in range(1, 25):
        action = data.draw(st.sampled_from(["take", "take", "free", "grow"]))
        if action == "take":
            need = data.draw(st.integers(1, store.longest))
            live = store.take(need)
            if live is not None:
                assert not live.keys.isnan().any() and live.slab.columns >= need
                put(live, need, mark)
                lives[mark] = live
        elif lives:
            chosen = data.draw(st.sampled_from(sorted(lives)))
            if action == "free":
                store.free(lives.pop(chosen))
            else:
                live = lives[chosen]
                need = data.draw(st.integers(live.length, store.longest))
                if store.grow(live, need, need):
                    put(live, need, chosen)
        assert memory(store) <= store.tokens
        assert len({(id(live.slab), live.row) for live in lives.values()}) == len(lives)
        for own, live in lives.items():
            assert live.slab.rows[live.row] is live
            assert (live.keys[:, :, : live.length] == own).all() and (live.values[:, :, : live.length] == -own).all()
    for live in lives.values():
        store.free(live)
    assert store.used == 0
    assert store.take(store.longest) is not None, "what is kept for others is given up for the longest sequence"


@torch.inference_mode()
def test_no_place_holds_nan_when_it_is_taken_and_a_longer_sequence_than_all_memory_is_refused() -> None:
    store = LiveStore(SHAPE, torch.float32, torch.device("cpu"), 512, slab=256)
    first, second, third = lives = [store.take(10) for _ in range(3)]
    assert first is not None and second is not None and third is not None
    slab = first.slab
    assert all(live is not None and live.slab is slab for live in lives)
    for live, mark in ((first, 4), (second, 5), (third, torch.nan)):
        put(live, 10, mark)  # type: ignore[arg-type]
    store.free(first)  # the last one takes its row
    assert third.row == 0 and not slab.keys[:, 1:].isnan().any() and not slab.values[:, 1:].isnan().any()
    store.free(third)
    assert not slab.keys.isnan().any() and not slab.values.isnan().any()
    assert second.row == 0 and (second.keys[:, :, :10] == 5).all()
    with pytest.raises(ValueError, match="a sequence of 600 tokens; all together may have 512"):
        store.take(600)
