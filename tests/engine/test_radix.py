"""The prefix index beside a naive one: what it finds, what it evicts, and who holds which block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import Blocks, Span
from engine.radix import Match, Node, RadixIndex, as_key

IDS = st.lists(st.integers(0, 2), max_size=40)


def naive_match(kept: list[list[int]], ids: list[int]) -> int:
    prefixes = {tuple(row[:length]) for row in kept for length in range(len(row) + 1)}
    return max((length for length in range(len(ids) + 1) if tuple(ids[:length]) in prefixes), default=0)


class Cache:
    """An index with a token written where its keys and values would be."""

    def __init__(self, count: int, size: int) -> None:
        self.blocks = Blocks(count, size)
        self.index = RadixIndex(self.blocks)
        self.places = np.full(count * size, -1)

    def insert(self, ids: list[int]) -> int:
        """Tokens of `ids` that are cached afterwards."""
        new = self.index.insert(as_key(ids))
        if new is not None:
            tokens = iter(ids[new.start : new.start + new.span.count])
            for place, count in self.blocks.runs(new.span):
                for at in range(place, place + count):
                    self.places[at] = next(tokens)
        return len(self.read(ids))

    def read(self, ids: list[int]) -> list[int]:
        match = self.index.match(as_key(ids))
        return self.tokens(match, match.tokens)

    def tokens(self, match: Match, count: int) -> list[int]:
        runs = [run for span in self.index.spans(match, count) for run in self.blocks.runs(span)]
        return [int(token) for place, length in runs for token in self.places[place : place + length]]

    def nodes(self) -> list[Node]:
        found, left = [], list(self.index.root.children.values())
        while left:
            found.append(left.pop())
            left += found[-1].children.values()
        return found

    def check(self) -> None:
        held = np.zeros_like(self.blocks.holders)
        for node in self.nodes():
            assert node.edge and node.parent is not None
            assert node.parent.children[node.edge[:4]] is node
            assert (
                len(node.blocks) * self.blocks.size
                >= node.offset + len(node.edge) // 4
                > (len(node.blocks) - 1) * self.blocks.size
            )
            held[node.blocks] += 1
        assert (held == self.blocks.holders).all(), "a block is held by the nodes that use it"
        assert self.blocks.used == (held > 0).sum()
        order = {node: place for place, node in enumerate(self.index._order)}
        assert order.keys() == set(self.nodes())
        assert all(order[node] < order[node.parent] for node in order if node.parent is not self.index.root)


@settings(deadline=None)
@given(st.lists(IDS, max_size=12), st.lists(IDS, min_size=1, max_size=6), st.integers(1, 5))
def test_the_longest_cached_prefix_is_found_and_is_where_it_was_put(kept: list, asked: list, size: int) -> None:
    cache = Cache(600, size)
    for number, ids in enumerate(kept):
        assert cache.insert(ids) == len(ids)
        cache.check()
        for other in kept[: number + 1] + asked:
            expected = naive_match(kept[: number + 1], other)
            assert cache.read(other) == other[:expected]
            match = cache.index.match(as_key(other))
            assert cache.tokens(match, expected // 2) == other[: expected // 2]
    assert cache.index.evicted == 0


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_pinned_stays_and_what_was_unused_longest_goes_first(data: Any) -> None:
    cache = Cache(data.draw(st.integers(1, 14)), data.draw(st.integers(1, 4)))
    pins: list[tuple[list[int], Match]] = []
    kept: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        ids = data.draw(IDS)
        action = data.draw(st.sampled_from(["insert", "insert", "pin", "unpin"]))
        if action == "insert":
            kept.append(ids)
            found = cache.insert(ids)
            # As much as there can be: all of it, or no block is free and all leaves but this one are in use.
            leaves = [node for node in cache.nodes() if not (node.children or node.pins)]
            assert found == len(ids) or (not cache.blocks.free and len(leaves) <= 1)
        elif action == "pin":
            match = cache.index.match(as_key(ids))
            if match.tokens:
                cache.index.pin(match.node)
                pins.append((ids[: match.tokens], match))
        elif pins:
            cache.index.unpin(pins.pop(data.draw(st.integers(0, len(pins) - 1)))[1].node)
        cache.check()
        assert cache.read(ids) == ids[: len(cache.read(ids))] and len(cache.read(ids)) <= naive_match(kept, ids)
        for pinned, _match in pins:
            assert cache.read(pinned) == pinned
    for _, match in pins:
        cache.index.unpin(match.node)
    assert not any(node.pins for node in cache.nodes())


def test_the_leaf_unused_longest_makes_room_and_a_used_path_stays() -> None:
    cache = Cache(6, 2)
    for ids in ([1, 1, 1, 1], [1, 1, 2, 2], [3, 3, 3, 3]):  # five blocks: two, one more, two
        cache.insert(ids)
    cache.read([1, 1, 1, 1])
    cache.insert([4, 4, 4, 4])
    assert cache.read([1, 1, 2, 2]) == [1, 1]
    cache.insert([5, 5])
    assert cache.read([3, 3]) == [] and cache.read([1, 1, 1, 1]) == [1, 1, 1, 1] and cache.index.evicted == 3


def test_a_sequence_longer_than_the_pool_is_kept_from_its_beginning() -> None:
    cache = Cache(3, 2)
    cache.insert([9, 9])
    assert cache.insert(list(range(20))) == 6
    assert cache.read(list(range(20))) == [0, 1, 2, 3, 4, 5]
    cache.check()


def test_blocks_that_nobody_holds_are_an_error() -> None:
    blocks = Blocks(4, 2)
    taken = blocks.take(3)
    with pytest.raises(MemoryError, match="2 blocks are asked for, 1 of 4 are free"):
        blocks.take(2)
    blocks.drop(taken)
    with pytest.raises(AssertionError, match="dropped more often"):
        blocks.drop(taken)
    assert blocks.used == 0 and blocks.runs(Span(np.array([0, 1, 3]), 1, 5)) == [(1, 3), (6, 2)]
