"""Updates whose loss or gradient norm spikes are left out: which, counted how, and the same after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acorn.stopping import Stopped
from pretrain import compat
from pretrain.config import PretrainConfig, SkipSpikes
from pretrain.spikes import SpikeGuard
from tests.pretrain.test_resume import files_of
from tests.pretrain.world import CONFIG, job_in, logged, sigterm_at, train, write_tokens

RULE = {"sigma": 3.0, "window": 8}


def fed(values: list[float], rule: dict[str, Any] | None = None) -> list[bool]:
    guard = SpikeGuard(SkipSpikes(**(rule or RULE)))
    return [guard.rejects(value, 1.0) is not None for value in values]


def test_only_a_value_far_above_the_window_is_a_spike() -> None:
    noise = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0]
    assert not any(fed(noise))
    assert fed([*noise, 9.0, 2.0])[-2:] == [True, False]
    assert not any(fed([*noise, 0.1]))  # far below is good news
    assert not any(fed([2.0, 2.1, 9.0, 2.0]))  # less than half a window seen


def test_a_spike_hides_no_other_and_a_lasting_rise_is_accepted_in_the_end() -> None:
    noise = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1, 1.9]
    assert fed([*noise, 50.0, 60.0])[-2:] == [True, True]
    risen = fed([*noise, *[4.0] * 30])
    assert risen[8] and not any(risen[-15:])


def test_the_gradient_norm_counts_as_well_and_the_reason_names_it() -> None:
    guard = SpikeGuard(SkipSpikes(**RULE))
    for norm in (1.0, 1.1, 0.9, 1.0):
        assert guard.rejects(2.0, norm) is None
    reason = guard.rejects(2.0, 40.0)
    assert reason is not None and reason.startswith("grad_norm 40 is above 1.2")
    assert guard.skipped == 1


def test_the_state_survives_a_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(2.0, 0.1, 60).tolist()
    whole = SpikeGuard(SkipSpikes(**RULE))
    first = SpikeGuard(SkipSpikes(**RULE))
    for value in values[:30]:
        whole.rejects(value, value), first.rejects(value, value)
    first.save(tmp_path)
    second = SpikeGuard(SkipSpikes(**RULE))
    second.load(tmp_path)
    assert [second.rejects(v, v) for v in values[30:]] == [whole.rejects(v, v) for v in values[30:]]
    assert second.skipped == whole.skipped > 0


def test_off_it_is_no_part_of_the_key_and_true_means_six_sigma() -> None:
    assert "skip_spikes" not in PretrainConfig(**CONFIG).model_dump(mode="json")
    assert PretrainConfig(**CONFIG, skip_spikes=False).skip_spikes is None
    on = PretrainConfig(**CONFIG, skip_spikes=True)
    assert on.skip_spikes == SkipSpikes(sigma=6.0, window=128)
    assert PretrainConfig.model_validate(on.model_dump(mode="json")) == on


def test_a_bad_batch_changes_no_weight_is_counted_and_resume_is_exact(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compat.install("cpu", flash=False)
    import pretrain.nanotron as nanotron_trainer

    tokens, real = write_tokens(tmp_path / "tokens"), nanotron_trainer.micro_batches

    def with_one_bad(file: Any, seed: int, first: int, *rest: Any) -> Any:
        """Step 14 (samples 104 to 111) sees one token and nothing else: a gradient norm of 23 where 1.1 is usual."""
        for number, batch in enumerate(real(file, seed, first, *rest)):
            yield np.full_like(batch, 2) if (first + number * len(batch)) // 8 == 13 else batch

    monkeypatch.setattr(nanotron_trainer, "micro_batches", with_one_bad)
    config = {"steps": 18, "skip_spikes": {"sigma": 4.0, "window": 12}, "init_std": 0.1}
    job = job_in(tmp_path / "whole", tokens, tiny_tokenizer, config, {"checkpoint_interval": 1})
    train(job)
    counts = logged(job, "train/skipped_updates")
    assert counts == [0] * 13 + [1] * 5
    assert all(map(math.isfinite, logged(job, "train/loss")))

    off = job_in(tmp_path / "off", tokens, tiny_tokenizer, config | {"skip_spikes": None})
    train(off)
    assert logged(off, "train/loss")[:14] == logged(job, "train/loss")[:14]
    assert logged(off, "train/loss")[14] != logged(job, "train/loss")[14]

    # Cut behind step 10: window and count go on from the checkpoint.
    again = job_in(tmp_path / "again", tokens, tiny_tokenizer, config)
    with sigterm_at(10), pytest.raises(Stopped):
        train(again)
    train(again)
    assert files_of(again.out) == files_of(job.out)
    assert logged(again, "train/skipped_updates") == counts
