"""The stage `sft` on the CPU: what is trained, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.utils as trl_utils
from transformers import AutoModelForCausalLM

from acorn.stage import Job
from acorn.tokenizers import TOKENIZER_FILES
from posttrain.training import assert_wrapped
from posttrain.trl import build_sft, on_triton, write_generation_config
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import SFT
from tests.posttrain.world import SETTINGS, files_of, logged, write_chat

END_OF_TURN = 2


def sft_job(folder: Path, model: Path, chat: Path, training: dict[str, Any] | None = None, **config: Any) -> Job:
    settings = {"global_batch_size": 8, "training": {**SETTINGS, "max_steps": 4, **(training or {})}, **config}
    return make_job(SFT, folder, settings, {"device": "cpu"}, {"model": model, "chat": chat})


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))


def test_training_lowers_the_loss_and_logs_every_step(fine_tuned: Job) -> None:
    losses = logged(fine_tuned, "train/loss")
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert {"train/learning_rate", "train/grad_norm", "train/tokens", "train/tokens_per_second", "train/epoch"} <= {
        name for line in (fine_tuned.scratch / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)
    }


def test_the_output_is_a_model_folder_with_the_inputs_tokenizer_byte_for_byte(
    fine_tuned: Job, tiny_model: Path
) -> None:
    out, source = files_of(fine_tuned.out), files_of(tiny_model)
    assert out.keys() == source.keys()
    for name in ("generation_config.json", *TOKENIZER_FILES):
        assert out.get(name) == source.get(name)
    assert out["model.safetensors"] != source["model.safetensors"]
    assert AutoModelForCausalLM.from_pretrained(fine_tuned.out).dtype == torch.float32


def test_the_language_head_runs_over_trained_positions_only(
    tiny_model: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = build_sft(sft_job(tmp_path, tiny_model, chat))
    batch = next(iter(trainer.get_train_dataloader()))
    positions: list[int] = []
    apply = trl_utils._ChunkedLogProbFunction.apply

    def spy(hidden: torch.Tensor, *rest: Any) -> Any:
        positions.append(len(hidden))
        return apply(hidden, *rest)

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=spy))
    ours = trainer.model(**batch, fused_lm_head=True).log_probs
    monkeypatch.setattr(trl_utils, "_use_triton", on_triton)
    trls = trainer.model(**batch, fused_lm_head=True).log_probs
    trained = batch["labels"][:, 1:] != -100
    assert positions[0] == trained.sum()
    assert positions[1] == trained.numel(), "TRL skips them by itself: drop `trained_positions_only`"
    assert torch.equal(ours[trained], trls[trained])


@pytest.mark.parametrize("packing", [False, True])
def test_the_end_of_turn_is_trained_in_every_row_that_the_collator_makes(
    tiny_model: Path, chat: Path, tmp_path: Path, packing: bool
) -> None:
    training = {"packing": packing, "max_length": 192 if packing else 96}
    trainer, _ = build_sft(sft_job(tmp_path, tiny_model, chat, training))
    asked, trained = 0, 0
    for batch in trainer.get_train_dataloader():
        ends, labels = batch["input_ids"] == END_OF_TURN, batch["labels"]
        # Each row has two turns; the user's end is never trained, the assistant's always, and nothing after it.
        asked += int(ends.sum()) // 2
        trained += int((labels[ends] == END_OF_TURN).sum())
        assert bool((labels[:, 1:][ends[:, :-1]] == -100).all())
    assert asked == trained == 64


def test_the_same_step_makes_the_same_bytes_whatever_the_micro_batch(
    fine_tuned: Job, tiny_model: Path, chat: Path, tmp_path: Path
) -> None:
    again = make_job(SFT, tmp_path, fine_tuned.config.model_dump(), {"device": "cpu"}, fine_tuned.inputs)
    metrics = run_here(SFT, again)
    assert files_of(again.out) == files_of(fine_tuned.out)
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_model).parameters())
    assert metrics["ledger/tokens"] == logged(fine_tuned, "train/tokens")[-1]
    assert metrics["ledger/flops"] == 6 * parameters * metrics["ledger/tokens"]


def test_accumulated_micro_batches_give_the_loss_of_one_batch(fine_tuned: Job, tmp_path: Path) -> None:
    config = fine_tuned.config.model_dump()
    config["training"]["max_steps"] = 4
    execution = {"device": "cpu", "micro_batch_size": 2, "logging_steps": 1}
    job = make_job(SFT, tmp_path, config, execution, fine_tuned.inputs)
    run_here(SFT, job)
    assert logged(job, "train/loss") == pytest.approx(logged(fine_tuned, "train/loss")[:4], abs=1e-5)


def test_rows_cut_before_their_end_of_turn_are_refused_above_the_allowed_share(
    tiny_model: Path, chat: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"max_length 40 cuts 64 of 64 rows"):
        run_here(SFT, sft_job(tmp_path / "none", tiny_model, chat, {"max_length": 40}))
    metrics = run_here(SFT, sft_job(tmp_path / "all", tiny_model, chat, {"max_length": 45}, max_truncated=1.0))
    assert metrics["train/truncated_rows"] == 64


def test_a_template_that_leaves_the_end_of_turn_untrained_is_refused(
    tiny_model: Path, chat: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    outside = template.replace("message['content'] + '<|im_end|>' -}}", "message['content'] -}}")
    outside = outside.replace("{%- endgeneration -%}", "{%- endgeneration -%}{{- '<|im_end|>' -}}")
    (model / "chat_template.jinja").write_text(outside)
    with pytest.raises(ValueError, match="never trains its end-of-turn token"):
        run_here(SFT, sft_job(tmp_path / "job", model, chat))


def test_what_cannot_work_is_refused_by_name_before_training(tiny_model: Path, chat: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.max_length 4096 is more than the model's 1024 positions"):
        run_here(SFT, sft_job(tmp_path / "a", tiny_model, chat, {"max_length": 4096}))
    with pytest.raises(ValueError, match=r"training\.output_dir"):
        run_here(SFT, sft_job(tmp_path / "b", tiny_model, chat, {"output_dir": "elsewhere"}))
    with pytest.raises(ValueError, match="no token '<end>'"):
        run_here(SFT, sft_job(tmp_path / "c", tiny_model, chat, end_of_turn="<end>"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train.jsonl").touch()
    with pytest.raises(ValueError, match="holds no rows"):
        run_here(SFT, sft_job(tmp_path / "d", tiny_model, empty))


def test_only_the_first_rows_are_used_where_max_rows_says_so(tiny_model: Path, tmp_path: Path) -> None:
    job = sft_job(tmp_path / "job", tiny_model, write_chat(tmp_path / "chat", rows=40), max_rows=16)
    assert run_here(SFT, job)["train/rows"] == 16


def test_a_generation_config_without_the_end_of_turn_gets_it(tiny_model: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    text = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**text, "eos_token_id": 0}))
    (tmp_path / "out").mkdir()
    write_generation_config(model, tmp_path / "out", END_OF_TURN)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [END_OF_TURN, 0]


def test_fewer_processes_than_asked_for_are_an_error(fine_tuned: Job, tmp_path: Path) -> None:
    execution = {"device": "cpu", "processes": 2}
    job = make_job(SFT, tmp_path, fine_tuned.config.model_dump(), execution, fine_tuned.inputs)
    with pytest.raises(RuntimeError, match=r"asked for 2 processes, the launcher announced 1 .* trainer sees 1"):
        run_here(SFT, job)


def test_a_model_that_is_not_wrapped_as_asked_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="asked for ddp, but the model is a Linear"):
        assert_wrapped(torch.nn.Linear(2, 2), "ddp")
    assert_wrapped(torch.nn.Linear(2, 2), "one")
