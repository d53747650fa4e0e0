"""Step delimiters as token ids, under real tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.rules import finish_of
from search.steps import StepSplitter


def bpe(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without pre-tokenizer rules: it merges whatever it can."""
    letters = sorted({letter for merge in merges for part in merge for letter in part} | set("abĊĠ."))
    vocabulary = {token: i for i, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_every_spelling_of_the_delimiter_ends_a_step(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    splitter = StepSplitter(tokenizer, "\n\n")
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    # The pre-tokenizer parts the line ends before a letter and keeps them together at the end of a text.
    text = "Mia buys 5: 74+5=79\n\nThen 4\n\n#### 79\n\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    steps = splitter.split(ids)
    assert [splitter.text(step) for step in steps] == ["Mia buys 5: 74+5=79\n\n", "Then 4\n\n", "#### 79\n\n"]
    assert (newline, newline) in splitter.stops
    assert [token for step in steps for token in step] == ids


def test_a_delimiter_inside_a_longer_token_ends_a_step() -> None:
    tokenizer = bpe((".", "Ċ"), (".Ċ", "Ċ"))
    splitter = StepSplitter(tokenizer, "\n\n")
    ids = tokenizer.encode("a.\n\nb\n\na.\nb")
    assert [splitter.text(step) for step in splitter.split(ids)] == ["a.\n\n", "b\n\n", "a.\nb"]


def test_white_space_behind_the_delimiter_in_one_token_is_no_fault() -> None:
    tokenizer = bpe(("Ċ", "Ċ"), ("ĊĊ", "Ġ"))
    splitter = StepSplitter(tokenizer, "\n\n")
    assert [splitter.text(step) for step in splitter.split(tokenizer.encode("a\n\n b"))] == ["a\n\n ", "b"]


@pytest.mark.parametrize("merges", [[("Ċ", "Ċ"), ("ĊĊ", "a")], [("Ċ", "a")]])
def test_a_delimiter_that_the_tokenizer_merges_away_is_refused(merges: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"merges the step delimiter .*tokens \d+ '(\\n)+a'.*use a delimiter that"):
        StepSplitter(bpe(*merges), "\n\n")


def test_a_delimiter_that_cannot_be_spelled_is_refused(tiny_tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="no sequence of this tokenizer's tokens spells"):
        StepSplitter(bpe(), "\t")
    with pytest.raises(ValueError, match="step delimiter is empty"):
        StepSplitter(AutoTokenizer.from_pretrained(tiny_tokenizer), "")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "Ċ", "ĊĊ", ".Ċ", ".ĊĊ", "."]), max_size=14))
def test_splitting_afterwards_cuts_where_the_engine_would_have_stopped(tokens: list[str]) -> None:
    tokenizer = bpe(("Ċ", "Ċ"), (".", "Ċ"), (".Ċ", "Ċ"))
    splitter = StepSplitter(tokenizer, "\n\n")
    ids = tokenizer.convert_tokens_to_ids(tokens)
    steps: list[list[int]] = [[]]
    for place, token in enumerate(ids):
        steps[-1].append(token)
        if finish_of(steps[-1], place, 99, 99, frozenset(), splitter.stops) == "stop":
            steps.append([])
    assert splitter.split(ids) == [step for step in steps if step]
