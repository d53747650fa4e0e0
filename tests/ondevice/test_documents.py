"""Text in and its chunks: nothing is lost, chunks end where a reader would pause, and each is within its budget."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.documents import Unreadable, decode, pack, read_text, split
from ondevice.plan import NoRoom, summary_plan

PROSE = st.text(st.sampled_from("abc. \n\t!é"), max_size=400)


def bytes_of(text: str) -> int:
    return len(text.encode())


def words_and_ends(text: str) -> int:
    """Not additive: cutting inside a word makes two of it."""
    return len(text.split()) + text.count("\n") + 1


@settings(max_examples=150, deadline=None)
@given(PROSE, st.integers(2, 60), st.sampled_from([bytes_of, words_and_ends]))
def test_chunks_join_to_the_text_and_each_is_within_the_budget(text: str, budget: int, count: object) -> None:
    chunks = split(text, budget, count)  # type: ignore[arg-type]
    assert "".join(chunks) == text
    assert all(0 < count(chunk) <= budget for chunk in chunks)  # type: ignore[operator]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=30), st.integers(14, 40))
def test_a_word_that_fits_is_never_cut(lengths: list[int], budget: int) -> None:
    words = ["w" * length for length in lengths]
    assert " ".join("".join(split(" ".join(words), budget, bytes_of)).split()) == " ".join(words)
    assert [word for chunk in split(" ".join(words), budget, bytes_of) for word in chunk.split()] == words


def test_a_chunk_ends_at_the_strongest_border_of_its_second_half() -> None:
    text = "One two three. Four five.\n\nSix seven eight nine. Ten\nEleven twelve."
    first, *rest = split(text, 38, bytes_of)
    assert first == "One two three. Four five.\n\n"
    assert rest == ["Six seven eight nine. Ten\n", "Eleven twelve."]
    assert split("One two three. Four five six seven", 24, bytes_of)[0] == "One two three. "
    assert split("a" * 30, 20, bytes_of) == ["a" * 20, "a" * 10]


def test_splitting_asks_for_few_counts_of_a_long_text() -> None:
    asked = 0

    def counting(text: str) -> int:
        nonlocal asked
        asked += 1
        return len(text) // 4

    chunks = split("A sentence of some words. " * 4000, 1000, counting)
    assert len(chunks) > 20
    assert asked / len(chunks) < 15


def test_a_character_that_is_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="the character 'é' alone is more than 1 tokens"):
        split("aé", 1, bytes_of)


def test_groups_keep_the_order_and_hold_as_many_as_fit() -> None:
    assert pack(["aaa", "bbb", "ccccccccc", "d"], 8, len) == [["aaa", "bbb"], ["ccccccccc"], ["d"]]


def test_a_plan_is_an_upper_bound_that_ends_in_one() -> None:
    plan = summary_plan(tokens=9000, chunks=20, context=512, chunk_tokens=400, reply_tokens=64)
    assert plan.levels == (20, 4, 1)
    assert plan.generations == 25
    assert plan.lines("summarize")[1:] == [
        "  level 1: summarize 20 chunks, at most 64 tokens each",
        "  level 2: bring 20 results together into at most 4",
        "  level 3: bring 4 results together into one",
    ]


def test_a_plan_that_would_never_end_is_refused_with_what_to_change() -> None:
    with pytest.raises(NoRoom, match=r"leaves 100 for text, and two summaries of 64 .* smaller --max-tokens"):
        summary_plan(tokens=9000, chunks=20, context=256, chunk_tokens=100, reply_tokens=64)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04\x00rest", "x is binary .byte 4 is zero.; extract its text"),
        (b"caf\xe9 noir", "x is not UTF-8: byte 3 is 0xe9; convert it, .*iconv"),
        (b"\xef\xbb\xbf \n\t", "x is empty"),
        (b"", "x is empty"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(raw: bytes, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        decode(raw, "x")


def test_files_and_standard_input_are_read_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\n".encode())
    assert read_text(str(tmp_path / "a.txt"), io.BytesIO()) == "é\r\n"
    assert read_text("-", io.BytesIO(b"typed")) == "typed"
    with pytest.raises(Unreadable, match="is a folder"):
        read_text(str(tmp_path), io.BytesIO())
    with pytest.raises(Unreadable, match=r"nowhere\.txt cannot be read .No such file"):
        read_text(str(tmp_path / "nowhere.txt"), io.BytesIO())
