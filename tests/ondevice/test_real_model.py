"""The tools on a real instruct model, SmolLM2-135M-Instruct (Q4_1). Without it these tests skip.

What is asked here it does with room to spare; how well it does the rest is for `benchmarks.ondevice_quality` to say.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ondevice_texts import SAMPLES
from ondevice.llama import Llama
from tests.ondevice.conftest import Typed


@pytest.fixture
def model(smollm2_gguf: Path) -> list[str]:
    return ["--model", str(smollm2_gguf), "--context", "2048"]


def test_it_answers_a_question(typed: Typed, model: list[str]) -> None:
    code, out, _ = typed("chat", *model, "--prompt", "How many days are in a week?", "--temperature", "0")
    assert code == 0 and "7" in out


def test_a_summary_names_its_subject(typed: Typed, model: list[str]) -> None:
    [news] = (sample for sample in SAMPLES if sample.name == "news")
    _, out, _ = typed("summarize", "-", *model, "--max-tokens", "64", "--json", stdin=news.text)
    assert "ferry" in json.loads(out)["text"].lower()  # whether it ends by itself is another matter


def test_the_agent_computes_with_the_calculator(typed: Typed, model: list[str]) -> None:
    code, out, err = typed("agent", "What is 23 * 47?", *model)
    assert code == 0 and "1081" in out
    assert "calculator" in err


def test_the_front_of_the_server_cuts_text_as_llama_cpp_does(smollm2_gguf: Path) -> None:
    import gguf

    from export.strings import FIXED, byte_level, hard_strings
    from serve.gguf import read_gguf

    fields = gguf.GGUFReader(smollm2_gguf).fields
    names, merges, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type"))
    special = [name for name, kind in zip(names, kinds, strict=True) if kind == 3]
    tokens = [byte_level(name) for name, kind in zip(names, kinds, strict=True) if kind == 1]
    pairs = [tuple(byte_level(part) for part in merge.split(" ")) for merge in merges]
    strings = hard_strings(2000, tokens, pairs, special, 0)  # type: ignore[arg-type]
    front, _ = read_gguf(smollm2_gguf)
    with Llama(smollm2_gguf, 256) as llama:
        for start in range(0, len(strings), 200):
            text = special[0].join(strings[start : start + 200])
            assert np.frombuffer(front.encode(text), np.uint32).tolist() == llama.tokenize(text, first=False)
    assert len(strings) > len(FIXED)
