"""The gate on a real model with its 49,152 entries, where one is here: SmolLM2-135M-Instruct, from a GGUF and back."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from export.config import Proof
from export.gguf import write_gguf
from export.llamacpp import LlamaCpp
from export.parity import distribution_parity, greedy_parity, hold_out, template_parity
from export.reference import Reference
from export.tokens import end_parity, tokenizer_parity
from export.vocabulary import read_vocabulary
from tests.jobs import make_job, run_here
from tests.pretrain.world import HUB_MODEL

ROWS = 49_152
PROOF = Proof(strings=2000, positions=8, window=24, greedy_prompts=2, greedy_tokens=8).bounding(["q4_1"])


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(HUB_MODEL, tmp_path_factory.mktemp("smollm2"), {"path": str(smollm2_gguf)})
    run_here(HUB_MODEL, job)
    return job.out


def test_the_folder_says_what_the_file_says(smollm2: Path, smollm2_gguf: Path) -> None:
    reference, vocabulary = Reference(smollm2, "cpu"), read_vocabulary(smollm2, ROWS)
    held_out = hold_out(reference, [], PROOF, 256)
    with LlamaCpp(smollm2_gguf, context=256, exact=True) as llama:
        assert tokenizer_parity(reference.tokenize, llama, vocabulary, [], PROOF)["entries"] > 48_000
        template_parity(reference, llama)
        assert end_parity(llama, reference.end_ids, vocabulary) == [0, 2]
        distribution_parity(llama, "q4_1", held_out, PROOF)


def test_its_f32_export_computes_the_same(smollm2: Path, tmp_path: Path) -> None:
    write_gguf(smollm2, tmp_path / "f32.gguf", "f32", {"name": "smollm2"})
    reference = Reference(smollm2, "cpu")
    held_out = hold_out(reference, [], PROOF, 256)
    with LlamaCpp(tmp_path / "f32.gguf", context=256, exact=True) as llama:
        distribution_parity(llama, "f32", held_out, PROOF)
        found, _ = greedy_parity(reference, llama, "f32", held_out, PROOF, 256)
    assert found["equal"] + found["ties"] == 2


def test_exported_as_q4_1_every_tensor_has_the_files_bits_again(
    smollm2: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    write_gguf(smollm2, tmp_path / "q4_1.gguf", "q4_1", {"name": "smollm2"})
    here, there = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
        for file in (smollm2_gguf, tmp_path / "q4_1.gguf")
    )
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert tensor.tensor_type == there[name].tensor_type, name
        assert (tensor.data == there[name].data).all(), name
