"""`preference_pairs`: how samples are ranked, and the real sampling pipeline at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.interface import Sampling
from engine.torch import TorchEngine
from synth.preference_pairs import make_pair
from synth.sampling import Sample, sample
from synth.stage import PREFERENCE_PAIRS
from synth.verify import score
from tests.jobs import make_job, run_here
from tests.synth.worlds import files, rows

PROBLEM: Any = {
    "id": "p",
    "question": "Ida has 3 apples, gets 4 and then twice as many. How many?",
    "solution": "Ida gets 4: 3+4=7\n\nIda doubles: 7*2=14\n\n#### 14",
    "answer": "14",
    "level": 1,
}
RIGHT = PROBLEM["solution"]
LATE_MISTAKE = "Ida gets 4: 3+4=7\n\nIda doubles: 7*2=15\n\n#### 15"
EARLY_MISTAKE = "Ida gets 4: 3+4=8\n\nIda doubles: 8*2=16\n\n#### 16"
NOISE = "Ida Ida\n\ngets gets"
LUCKY = "Ida gets 4: 3+4=8\n\n#### 14"


def _samples(*texts: str, finished: bool = True) -> list[dict[str, Any]]:
    return [{"id": "p", "text": text, "finished": finished, "tokens": 1} for text in texts]


def _score(text: str, finished: bool = True) -> Any:
    return score(text, PROBLEM["answer"], PROBLEM["solution"], finished)


def test_right_beats_wrong_and_a_later_mistake_beats_an_earlier_one_and_noise() -> None:
    order = [RIGHT, LUCKY, LATE_MISTAKE, EARLY_MISTAKE]
    assert sorted(order, key=_score, reverse=True) == order
    assert _score(LATE_MISTAKE).steps == 0.5
    assert _score(NOISE).steps == 0
    assert _score(RIGHT) > _score(RIGHT, finished=False)


def test_a_pair_takes_the_right_sample_and_the_worst() -> None:
    pair = make_pair(PROBLEM, _samples(LATE_MISTAKE, RIGHT, EARLY_MISTAKE, LUCKY), reference_fallback=True)
    assert pair["chosen"] == [{"role": "assistant", "content": RIGHT}]
    assert pair["rejected"] == [{"role": "assistant", "content": EARLY_MISTAKE}]
    assert pair["prompt"] == [{"role": "user", "content": PROBLEM["question"]}]
    assert pair["source"] == "sampled"


def test_without_a_right_sample_the_reference_is_chosen_or_the_prompt_is_rejected() -> None:
    # A right number after a wrong step, and a right solution that was cut off, are nothing to learn from.
    samples = _samples(LUCKY) + _samples(RIGHT, finished=False)
    pair = make_pair(PROBLEM, samples, reference_fallback=True)
    assert pair["chosen"][0]["content"] == RIGHT
    assert pair["source"] == "reference"
    assert make_pair(PROBLEM, samples, reference_fallback=False)["reason"] == "none_right"
    assert make_pair(PROBLEM, _samples(RIGHT, RIGHT), reference_fallback=True)["reason"] == "same_score"


def test_a_sample_ends_at_the_last_position_of_the_model(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = ["Ida has 3 apples. ", "Ida has 3 apples and 4 books and 5 coins and 6 shells at home. "]
    short, long = (len(tokenizer(prompt)["input_ids"]) for prompt in prompts)

    def samples(context: int) -> list[Sample]:
        return sample(TorchEngine(tiny_model, context=context), tokenizer, prompts, [1, 2], Sampling(), 8, batch_size=2)

    first, second = samples(short + 3)
    assert (first.tokens, first.finished) == (3, False)
    assert (second.tokens, second.finished) == (0, False)
    whole, _ = samples(long + 8)
    assert whole.tokens == 8
    assert whole.text.startswith(first.text)
    with pytest.raises(ValueError, match=f"the shortest prompt has {short} tokens, the model only {short} positions"):
        samples(short)


def test_sampling_depends_on_the_seed_and_neither_on_batches_nor_on_shards(
    tiny_corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    inputs = {"corpus": tiny_corpus, "model": tiny_model}
    config = {"problems": 6, "llm": {"type": "model", "generation_kwargs": {"max_new_tokens": 12}}}
    outs = []
    for number, execution in enumerate([{}, {"shard_size": 4, "batch_size": 5}]):
        job = make_job(PREFERENCE_PAIRS, tmp_path / str(number), config, execution, inputs)
        metrics = run_here(PREFERENCE_PAIRS, job)
        assert metrics["synth/rows"] == 24
        assert 24 <= metrics["synth/tokens"] <= 24 * 12
        outs.append(job.out)
    assert files(outs[0]) == files(outs[1])
    pairs = rows(outs[0] / "train.jsonl")
    assert len(pairs) == 6
    assert {pair["source"] for pair in pairs} == {"reference"}, "an untrained model solves nothing"
    assert len({pair["rejected"][0]["content"] for pair in pairs}) > 1

    other = make_job(PREFERENCE_PAIRS, tmp_path / "none", config | {"reference_fallback": False}, {}, inputs)
    with pytest.raises(
        ValueError, match=r"no pair from 6 problems and 24 samples .*'none_right': 6.*reference_fallback"
    ):
        run_here(PREFERENCE_PAIRS, other)
