"""K- and I-quants through llama.cpp's own quantiser. What runs it is skipped where the extra `quants` is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import quants
from export.check import check_gguf, check_gguf_inputs
from export.config import NEED_IMPORTANCE, WRITTEN_HERE, GgufConfig, LlamaCppExecution
from export.huggingface import ExportError
from export.importance import measure_importance
from export.reference import Reference
from export.stage import STAGES
from tests.export.models import make_model
from tests.jobs import make_job, run_here

needs_extra = pytest.mark.skipif(
    not quants.installed(), reason="llama-cpp-python is not installed: pip install 'acorn-lm[quants]'"
)
SMALL: dict[str, Any] = {
    "strings": 50, "code_points": False, "documents": 2, "positions": 16, "window": 32, "greedy_prompts": 1,
}  # fmt: skip


def test_without_the_extra_a_recipe_is_told_its_name_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quants, "find_spec", lambda _: None)
    (problem,) = check_gguf(GgufConfig(types=["f16", "q4_k_m"]), LlamaCppExecution())
    assert problem.field == "types"
    assert "type 'q4_k_m' needs llama.cpp's own quantiser" in problem.message
    assert "pip install 'acorn-lm[quants]'" in problem.message
    assert check_gguf(GgufConfig(types=["f16", "q4_0"]), LlamaCppExecution()) == []
    with pytest.raises(ExportError, match=r"type 'q4_k_m' needs .*acorn-lm\[quants\]"):
        quants.quantise(Path("a"), Path("b"), "q4_k_m", {}, 1)


def test_types_that_need_an_importance_matrix_need_a_corpus() -> None:
    assert check_gguf_inputs(GgufConfig(types=["q4_k_m"]), {"model": "m"}) == []
    (problem,) = check_gguf_inputs(GgufConfig(types=["iq2_xs"]), {"model": "m"})
    assert (problem.field, "importance matrix" in problem.message) == ("inputs.corpus", True)
    (problem,) = check_gguf_inputs(GgufConfig(types=["iq2_xs"], importance_tokens=0), {"model": "m", "corpus": "c"})
    assert problem.field == "config.importance_tokens"
    assert check_gguf_inputs(GgufConfig(types=["iq2_xs"]), {"model": "m", "corpus": "c"}) == []


def test_every_type_has_thresholds() -> None:
    proof = GgufConfig(types=["iq1_s", "iq3_m", "q4_k_m", "q6_k", "q8_0"]).proof
    assert proof.max_kl["iq1_s"] > proof.max_kl["iq3_m"] > proof.max_kl["q6_k"] > proof.max_kl["q8_0"]
    assert proof.min_top1["iq1_s"] < proof.min_top1["q4_k_m"] < proof.min_top1["q6_k"]


@pytest.fixture(scope="module")
def wide(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are multiples of 256, but for `down_proj`, whose rows are 320."""
    more = {"hidden_size": 256, "feed_forward": 320}
    return make_model(tiny_tokenizer, tmp_path_factory.mktemp("wide") / "model", scale=0.05, **more)


def test_importance_is_the_mean_square_of_what_each_matrix_reads(wide: Path, tiny_corpus: Path) -> None:
    from export.huggingface import read_shape

    reference = Reference(wide, "cpu")
    found = measure_importance(reference, read_shape(wide), tiny_corpus, 300)
    assert len(found) == 14  # 7 matrices in 2 layers; the head is tied
    assert found["blk.1.ffn_down.weight"].shape == (320,)
    assert all(values.dtype == np.float32 and (values > 0).all() for values in found.values())
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_v.weight"])
    # After a norm of weight one the squares of all inputs have mean one.
    assert found["blk.0.attn_q.weight"].mean() == pytest.approx(1, abs=0.01)
    np.testing.assert_array_equal(
        found["blk.0.ffn_down.weight"],
        measure_importance(reference, read_shape(wide), tiny_corpus, 300)["blk.0.ffn_down.weight"],
    )


@needs_extra
def test_k_and_i_quants_are_proven_and_report_their_true_bits(wide: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    types = ["q8_0", "q6_k", "q4_k_m", "iq4_nl", "iq2_xs"]
    loose = {"max_kl": dict.fromkeys(types, 50.0), "min_top1": dict.fromkeys(types, 0.0)}
    config = {"types": types, "importance_tokens": 600, "proof": SMALL | loose}
    job = make_job(STAGES[0], tmp_path, config, {"threads": 1}, {"model": wide, "corpus": tiny_corpus})
    metrics = run_here(STAGES[0], job)
    sheet = json.loads((job.out / "export.json").read_text())["types"]
    bits = [sheet[kind]["bits_per_weight"] for kind in types]
    assert bits == sorted(bits, reverse=True)
    assert sheet["q6_k"]["tensor_types"]["q6_k"] >= 12
    assert sum(count for kind, count in sheet["q6_k"]["tensor_types"].items() if kind not in ("q6_k", "f32")) == 2
    assert metrics["export/q6_k/kl"] < metrics["export/iq2_xs/kl"]
    for kind in types:
        assert sheet[kind]["bytes"] == (job.out / f"model-{kind}.gguf").stat().st_size
    found = json.loads((job.out / "parity.json").read_text())["types"]
    for kind in ("q6_k", "q4_k_m", "iq4_nl"):  # made with and without the importance matrix: the nearer one stays
        assert found[kind]["kl"] == min(found[kind]["kl_with_importance"], found[kind]["kl_without_importance"])
    assert "kl_with_importance" not in found["iq2_xs"], "it cannot do without"
    assert sorted(path.name for path in job.scratch.glob("*.gguf")) == []


@needs_extra
def test_the_importance_matrix_changes_the_file_and_threads_do_not(
    wide: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from export.gguf import write_gguf
    from export.huggingface import read_shape

    importance = measure_importance(Reference(wide, "cpu"), read_shape(wide), tiny_corpus, 600)
    write_gguf(wide, tmp_path / "f32", "f32", {})
    digests = {}
    for name, given, threads in (("none", {}, 1), ("one", importance, 1), ("two", importance, 2)):
        quants.quantise(tmp_path / "f32", tmp_path / name, "q3_k_m", given, threads)
        digests[name] = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert digests["none"] != digests["one"] == digests["two"]


@needs_extra
def test_what_llama_cpp_refuses_is_an_error_in_its_words(wide: Path, tmp_path: Path) -> None:
    from export.gguf import write_gguf

    write_gguf(wide, tmp_path / "f32", "f32", {})
    with pytest.raises(ExportError, match=r"does not quantise to iq2_xxs: .*requires an imatrix"):
        quants.quantise(tmp_path / "f32", tmp_path / "m", "iq2_xxs", {}, 1)
    assert not (tmp_path / "m").exists()


@needs_extra
def test_every_type_is_known_to_llama_cpp() -> None:
    import llama_cpp

    from export.config import GgufType

    for kind in GgufType.__args__:
        if kind not in WRITTEN_HERE:
            assert hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"), kind
    assert set(NEED_IMPORTANCE) < set(GgufType.__args__)
