"""Training that goes on from a model: annealing, longer contexts, and models made elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from acorn.stage import Job
from acorn.tokenizers import copy_tokenizer
from pretrain import compat
from pretrain.arguments import nanotron_config, split_batch
from pretrain.checkpoints import CheckpointFolder
from pretrain.config import PretrainConfig
from pretrain.data import TokenFile
from pretrain.initial import InitialWeights
from pretrain.inputs import refuse_another_model
from pretrain.run import process_group
from tests.pretrain.test_resume import files_of
from tests.pretrain.test_training import free_ports, launch_two
from tests.pretrain.world import CONFIG, MODEL, VOCABULARY, job_in, logged, train, write_tokens

THETA = 130_000.0
LONG = {**MODEL, "tie_word_embeddings": False, "rope_theta": THETA, "max_position_embeddings": 256}
GONE = object()
STANDSTILL: dict[str, Any] = {"steps": 1, "learning_rate_scheduler": {"learning_rate": 1e-3}}
"""One step, whose learning rate nanotron's warm-up makes 0."""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A model that acorn did not make: grouped heads, an untied head, another rope_theta, norms that are not 1."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    shape = {name: value for name, value in LONG.items() if name != "rope_theta"}
    rope = {"rope_theta": THETA, "rope_type": "default"}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=VOCABULARY, rope_parameters=rope, initializer_range=0.2))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    copy_tokenizer(tiny_tokenizer, folder)
    return folder


def nanotron_logits(folder: Path, model: Path, config: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    """(B, S, vocabulary) of nanotron's Llama with the weights of a model folder."""
    compat.install("cpu", flash=False)
    from pretrain.nanotron import Run, Tracker, Trainer

    identity = PretrainConfig(**{**CONFIG, **config, "sequence_length": tokens.shape[1]})
    execution = job_in(folder, folder, folder).execution
    arguments = nanotron_config(identity, execution, split_batch(identity, execution, 1), VOCABULARY, folder, None)
    file = TokenFile(np.zeros(300, dtype=np.uint16), tokens.shape[1])
    work = Run(
        identity, execution, file, file, 1, CheckpointFolder(folder), Tracker(None), "cpu", InitialWeights(model)
    )
    with process_group("cpu"), torch.no_grad():
        trainer = Trainer(arguments, work, folder / "nanotron.yaml")
        logits = trainer.unwrapped_model.model(input_ids=tokens, input_mask=torch.ones_like(tokens, dtype=torch.bool))
    return torch.as_tensor(logits.transpose(0, 1))


def test_nanotron_has_the_logits_of_a_model_made_elsewhere_whatever_its_rope_theta(
    elsewhere: Path, tmp_path: Path
) -> None:
    tokens = torch.randint(VOCABULARY, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(elsewhere)(tokens).logits
    assert theirs.std() > 0.5
    assert (nanotron_logits(tmp_path, elsewhere, {"model": LONG}, tokens) - theirs).abs().max() < 1e-5
    usual = nanotron_logits(tmp_path, elsewhere, {"model": {**LONG, "rope_theta": 10_000.0}}, tokens)
    assert (usual - theirs).abs().max() > 0.1


def test_a_model_goes_through_nanotron_unchanged(
    elsewhere: Path, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    config = {**STANDSTILL, "model": LONG}
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer, config, inputs={"model": elsewhere})
    train(job)
    before, after = (load_file(folder / "model.safetensors") for folder in (elsewhere, job.out))
    assert before.keys() == after.keys() and "lm_head.weight" in after
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    written = LlamaForCausalLM.from_pretrained(job.out).config
    assert written.rope_parameters["rope_theta"] == THETA and written.max_position_embeddings == 256


def test_a_run_that_goes_on_begins_where_the_earlier_one_ended(
    undisturbed: Job, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    inputs = {"model": undisturbed.out}
    still = job_in(tmp_path / "still", toy_tokens, tiny_tokenizer, STANDSTILL, inputs=inputs)
    train(still)
    assert files_of(still.out) == files_of(undisturbed.out)
    assert logged(still, "validation/loss") == logged(undisturbed, "validation/loss")
    longer = {"model": {**MODEL, "rope_theta": THETA}, "sequence_length": 64, "global_batch_size": 4, "steps": 3}
    extended = job_in(tmp_path / "extended", toy_tokens, tiny_tokenizer, longer, inputs=inputs)
    train(extended)
    assert logged(extended, "train/loss")[0] == pytest.approx(logged(undisturbed, "train/loss")[-1], abs=0.05)
    rope = json.loads((extended.out / "config.json").read_text())["rope_parameters"]
    assert rope["rope_theta"] == THETA


def test_two_processes_go_on_like_one(elsewhere: Path, undisturbed: Job, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """An untied head split by tp, a tied one shared by two pipeline stages."""
    cases: dict[str, tuple[Path, dict[str, Any], dict[str, Any]]] = {
        "tp": (elsewhere, LONG, {"parallelism": {"tp": 2}}),
        "pp": (undisturbed.out, MODEL, {"parallelism": {"pp": 2}}),
    }
    tokens = undisturbed.inputs["tokens"]
    entries = [
        {
            "folder": str(tmp_path / name),
            "tokens": str(tokens),
            "tokenizer": str(tiny_tokenizer),
            "port": port,
            "config": {"steps": 3, "model": shape},
            "execution": execution,
            "inputs": {"model": str(model)},
        }
        for (name, (model, shape, execution)), port in zip(cases.items(), free_ports(len(cases)), strict=True)
    ]
    launch_two(["-m", "tests.pretrain.world", json.dumps(entries)])
    for name, (model, shape, _) in cases.items():
        config = {"steps": 3, "model": shape}
        alone = job_in(tmp_path / f"{name}-alone", tokens, tiny_tokenizer, config, inputs={"model": model})
        train(alone)
        both = job_in(tmp_path / name, tokens, tiny_tokenizer, config)
        for metric in ("train/loss", "train/grad_norm", "validation/loss"):
            assert logged(both, metric) == pytest.approx(logged(alone, metric), abs=1e-5), (name, metric)
        one, two = (load_file(job.out / "model.safetensors") for job in (alone, both))
        assert all(torch.allclose(two[key], tensor, atol=1e-5) for key, tensor in one.items())


def test_a_mixture_in_stages_with_1_sqrt_decay_resumes_exactly(
    toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    schedule = {
        "learning_rate": 1e-3,
        "lr_warmup_steps": 1,
        "lr_decay_style": "1-sqrt",
        "lr_decay_starting_step": 2,
        "min_decay_lr": 1e-4,
    }
    stages = [
        {"name": "stable", "start_training_step": 1, "data": {"tokens": 3, "extra": 1}},
        {"name": "decay", "start_training_step": 4, "data": {"extra": 1}},
    ]
    config = {"steps": 6, "learning_rate_scheduler": schedule, "data_stages": stages}
    extra = {"extra": write_tokens(tmp_path / "extra")}
    job = job_in(tmp_path, toy_tokens, tiny_tokenizer, config, {"checkpoint_interval": 4}, extra)
    metrics = train(job)
    rates = [1e-4 + 9e-4 * (1 - (place / 4) ** 0.5) for place in range(4)]
    assert logged(job, "train/learning_rate") == pytest.approx([0.0, 1e-3, *rates])
    assert metrics["train/tokens/tokens"] == 18 * 32 and metrics["train/tokens/extra"] == 30 * 32
    whole, losses = files_of(job.out), logged(job, "train/loss")
    shutil.rmtree(job.scratch / "checkpoints" / "6")
    train(job)
    assert files_of(job.out) == whole and logged(job, "train/loss") == losses
    assert logged(job, "train/learning_rate") == pytest.approx([0.0, 1e-3, *rates])


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({"hidden_size": 64}, {}, "model.hidden_size is 64, and 32 in the input model's config.json: write 32"),
        ({"num_key_value_heads": None}, {}, "num_key_value_heads is 4, and 2"),
        ({"tie_word_embeddings": True}, {}, "tie_word_embeddings is True, and False"),
        ({}, {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-05, and 1e-06"),
        ({"rope_theta": GONE}, {}, "rope_theta is not given, and 130000 .*: write that to go on as it is, or a larger"),
        ({}, {"attention_bias": True}, "attention_bias True; nanotron 0.4 knows only False"),
        ({}, {"head_dim": 16}, "head_dim 16; nanotron 0.4 knows only 8"),
        ({}, {"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "rope_type linear"),
    ],
)
def test_an_input_model_of_another_shape_is_refused(
    elsewhere: Path, ours: dict[str, Any], theirs: dict[str, Any], words: str
) -> None:
    given = {name: value for name, value in {**LONG, **ours}.items() if value is not GONE}
    model = {**json.loads((elsewhere / "config.json").read_text()), **theirs}
    with pytest.raises(ValueError, match=words):
        refuse_another_model(PretrainConfig(**{**CONFIG, "model": given}), model)


def test_tokens_of_another_tokenizer_are_refused(
    elsewhere: Path, toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    larger = shutil.copytree(toy_tokens, tmp_path / "larger")
    meta = json.loads((larger / "meta.json").read_text())
    (larger / "meta.json").write_text(json.dumps({**meta, "vocab_size": 600}))
    job = job_in(tmp_path / "a", toy_tokens, tiny_tokenizer)
    for inputs in ({**job.inputs, "code": larger}, {"code": larger, **job.inputs}):
        with pytest.raises(ValueError, match=r"inputs.code has a vocabulary of 600 entries, inputs.tokens one of 512"):
            train(replace(job, inputs=inputs))
    other = shutil.copytree(toy_tokens, tmp_path / "other")
    (other / "manifest.json").write_text(json.dumps({"inputs": {"tokenizer": {"digest": "abc"}}}))
    with pytest.raises(ValueError, match=r"inputs.code was made with another tokenizer \(abc\)"):
        train(job_in(tmp_path / "b", toy_tokens, tiny_tokenizer, inputs={"code": other}))
    renamed = shutil.copytree(elsewhere, tmp_path / "renamed")
    text = (renamed / "tokenizer.json").read_text().replace("<|im_end|>", "<|stop|>")
    (renamed / "tokenizer.json").write_text(text)
    config = {"model": LONG}
    with pytest.raises(ValueError, match=r"token '<\|im_end\|>' is 2 in inputs.tokenizer, and None to inputs.model"):
        train(job_in(tmp_path / "c", toy_tokens, tiny_tokenizer, config, inputs={"model": renamed}))
