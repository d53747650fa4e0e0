"""What TRL and peft offer beside the plain stages: adapters, packing, noise, other preference losses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from acorn.stage import Job
from posttrain.check import check_sft
from posttrain.config import PosttrainExecution, SftConfig
from posttrain.trl import build_sft
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import DPO, SFT
from tests.posttrain.world import SETTINGS, files_of, logged

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def changed(done: Job, folder: Path, training: dict[str, Any], save_steps: int = 100, **config: Any) -> Job:
    """`done` again with other settings, logged step by step."""
    fields = done.config.model_dump()
    fields["training"] |= training
    stage = SFT if done.stage == "sft" else DPO
    execution = {"device": "cpu", "logging_steps": 1, "save_steps": save_steps}
    return make_job(stage, folder, {**fields, **config}, execution, done.inputs)


def test_packed_documents_have_the_logits_they_have_alone(tiny_model: Path, chat: Path, tmp_path: Path) -> None:
    training = {**SETTINGS, "packing": True, "max_length": 192}
    config = {"global_batch_size": 4, "training": training}
    job = make_job(SFT, tmp_path, config, {"device": "cpu"}, {"model": tiny_model, "chat": chat})
    trainer, _ = build_sft(job)
    batch = next(iter(trainer.get_train_dataloader()))
    model, seen = trainer.model, []
    assert model.config._attn_implementation == "sdpa"
    model.model.register_forward_hook(lambda _, __, output: seen.append(model.lm_head(output.last_hidden_state[0])))
    with torch.no_grad():
        trainer.compute_loss(model, dict(batch))
        [packed] = seen
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
        assert len(starts) > 8
        for begin, end in itertools.pairwise([*starts, len(packed)]):
            alone = model(input_ids=batch["input_ids"][:, begin:end]).logits[0]
            assert torch.allclose(packed[begin:end], alone, atol=1e-5)
        leaking = model(input_ids=batch["input_ids"]).logits[0]  # without position ids documents see each other
    assert not torch.allclose(packed[starts[1] :], leaking[starts[1] :], atol=1e-2)


def test_adapters_are_trained_alone_and_kept_merged_and_unmerged(fine_tuned: Job, tmp_path: Path) -> None:
    job = changed(fine_tuned, tmp_path / "lora", {"max_steps": 4}, save_steps=2, lora=LORA)
    metrics = run_here(SFT, job)
    start, merged = (load_file(folder / "model.safetensors") for folder in (job.inputs["model"], job.out))
    touched = {name for name in start if not torch.equal(start[name], merged[name])}
    assert touched == {name for name in start if any(part in name for part in LORA["target_modules"])}
    base = AutoModelForCausalLM.from_pretrained(job.inputs["model"])
    adapted = PeftModel.from_pretrained(base, job.out / "adapter")
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        one, other = adapted(ids).logits, AutoModelForCausalLM.from_pretrained(job.out)(ids).logits
    assert torch.allclose(one, other, atol=1e-5)
    settings = json.loads((job.out / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == ("digest-of-model", 4)
    assert {path.name for path in (job.out / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    parameters = sum(p.numel() for p in adapted.parameters())
    assert metrics["ledger/flops"] == 4 * parameters * metrics["ledger/tokens"]
    undisturbed = files_of(job.out)
    for path in sorted(job.out.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run_here(SFT, job)  # from the checkpoint of step 2
    assert files_of(job.out) == undisturbed


def test_adapters_may_train_single_tokens_and_the_merged_model_has_them(fine_tuned: Job, tmp_path: Path) -> None:
    job = changed(fine_tuned, tmp_path, {"max_steps": 2}, lora={**LORA, "trainable_token_indices": [1, 2]})
    run_here(SFT, job)
    start, merged = (load_file(folder / "model.safetensors") for folder in (job.inputs["model"], job.out))
    moved = (start["model.embed_tokens.weight"] != merged["model.embed_tokens.weight"]).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [1, 2]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job.inputs["model"]), job.out / "adapter")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        one, other = adapted(ids).logits, AutoModelForCausalLM.from_pretrained(job.out)(ids).logits
    assert torch.allclose(one, other, atol=1e-5)


def test_the_reference_of_adapters_is_the_model_without_them(aligned: Job, tmp_path: Path) -> None:
    job = changed(aligned, tmp_path, {"max_steps": 2}, lora=LORA)
    run_here(DPO, job)
    losses = logged(job, "train/loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1] < losses[0]


def test_quantised_weights_are_refused_with_what_is_missing(fine_tuned: Job, tmp_path: Path) -> None:
    quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    step = SftConfig(global_batch_size=8, lora=LORA, quantization=quantization)
    assert check_sft(step, PosttrainExecution()) == []
    job = changed(fine_tuned, tmp_path, {"max_steps": 1}, lora=LORA, quantization=quantization)
    with pytest.raises(ValueError, match=r"QLoRA needs a CUDA GPU \(this step runs on the cpu\)"):
        run_here(SFT, job)
    with pytest.raises(ValueError, match="set `lora` beside it"):
        SftConfig(global_batch_size=8, quantization=quantization)


def test_a_misspelt_argument_of_peft_is_found_before_the_run() -> None:
    step = SftConfig(global_batch_size=8, lora={"rank": 4, "lora_alpa": 8}, quantization={"load_in_4bits": True})
    found = {problem.field: problem.message for problem in check_sft(step, PosttrainExecution())}
    assert found.keys() == {"lora.rank", "lora.lora_alpa", "quantization.load_in_4bits"}
    assert "did you mean `lora_alpha`?" in found["lora.lora_alpa"]
    assert "did you mean `load_in_4bit`?" in found["quantization.load_in_4bits"]


def test_noise_on_the_embeddings_changes_the_losses_and_follows_the_seed(fine_tuned: Job, tmp_path: Path) -> None:
    losses = []
    for number in range(2):
        job = changed(fine_tuned, tmp_path / str(number), {"max_steps": 2, "neftune_noise_alpha": 5})
        run_here(SFT, job)
        losses.append(logged(job, "train/loss"))
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(logged(fine_tuned, "train/loss")[:2], abs=1e-3)


@pytest.mark.parametrize(
    ("training", "first"),
    [
        ({"loss_type": ["ipo"]}, 25.0),  # (0 - 1 / 2 beta)^2, beta 0.1
        ({"loss_type": ["hinge"]}, 1.0),
        ({"loss_type": ["apo_zero"]}, 1.0),  # 1 - sigmoid(0) + sigmoid(0)
        ({"loss_type": ["apo_down"]}, 1.0),
        ({"loss_type": ["nca_pair"]}, 2 * math.log(2)),
        ({"loss_type": ["robust"], "label_smoothing": 0.1}, math.log(2)),
    ],
)
def test_a_preference_loss_begins_where_its_formula_says_for_equal_models(
    aligned: Job, tmp_path: Path, training: dict[str, Any], first: float
) -> None:
    job = changed(aligned, tmp_path, {"max_steps": 1, "beta": 0.1, **training}, max_rows=8)
    run_here(DPO, job)
    assert logged(job, "train/loss")[0] == pytest.approx(first, rel=1e-3)
