"""Zero configuration: sizes from the files, choices from a made-up machine, refusals, and what the clock settles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acorn.launch import StepFailed
from engine.limits import Memory
from registry import Registry, Spec
from serve.command import find_model
from serve.settings import Settings, Wishes
from serve.sizes import folder_size, gguf_size
from serve.zero import FIELDS, TORCH, Machine, choose, gb, table
from tests.serve.servers import settings_of

GB = 10**9
LAPTOP = Machine(Memory(16 * GB, 24 * GB, "RAM"), None, (4, "the 4 cores of this process"))
GPU = Memory(20 * GB, 24 * GB, "the memory of GPU 0 (X)")


def machine(free: float, **changed: Any) -> Machine:
    return replace(LAPTOP, ram=Memory(int(free), 2 * GB, "the memory cgroup /job"), **changed)


def make_folder(folder: Path, dtype: str, layers: int, hidden: int, **config: Any) -> Path:
    """A model folder with headers alone: the file is sparse, and has the size that the header says."""
    folder.mkdir()
    tensors: dict[str, Any] = {}
    at, width = 0, {"F32": 4, "BF16": 2, "F16": 2}[dtype]
    for name in ["model.embed_tokens.weight", *(f"model.layers.{n}.mlp.up_proj.weight" for n in range(layers))]:
        tensors[name] = {
            "dtype": dtype,
            "shape": [4 * hidden, hidden],
            "data_offsets": [at, at + 4 * hidden**2 * width],
        }
        at += 4 * hidden**2 * width
    header = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(sizes | {"max_position_embeddings": 4096} | config))
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.gguf import write_gguf

    file = tmp_path_factory.mktemp("tiny_gguf") / "tiny.gguf"
    write_gguf(tiny_model, file, "f16", {"name": "tiny"})
    return file


def test_sizes_are_those_of_the_real_model(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from engine.load import load_tree

    size, model = folder_size(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    assert size.parameters == sum(one.numel() for one in model.parameters())
    assert size.weights("float32") == sum(one.nbytes for one in model.parameters())
    assert size.cache("float32") == load_tree(model).bytes_per_position
    assert (size.dtype, size.context, len(size.matrices)) == ("float32", 1024, 7)
    assert all(isinstance(side, int) for shape in size.matrices for side in shape)


def test_sizes_of_a_gguf_are_those_of_its_folder(tiny_model: Path, tiny_gguf: Path) -> None:
    folder, file = folder_size(tiny_model), gguf_size(tiny_gguf)
    assert (file.parameters, file.cache_numbers, file.context) == (folder.parameters, folder.cache_numbers, 1024)
    assert file.stored <= tiny_gguf.stat().st_size


def test_a_sliding_window_and_a_longrope_end_the_context(tmp_path: Path) -> None:
    for name, config, context in (
        ("window", {"sliding_window": 1024}, 1024),
        ("unused", {"sliding_window": 1024, "use_sliding_window": False}, 4096),
        ("full", {"sliding_window": 1024, "layer_types": ["full_attention"] * 2}, 4096),
        ("rope", {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 2048}}, 2048),
    ):
        assert folder_size(make_folder(tmp_path / name, "F32", 2, 64, **config)).context == context


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "F32", 2, 64)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match="cut short"):
        folder_size(folder)


def test_every_choice_has_a_value_and_a_reason(tiny_model: Path) -> None:
    settings = choose(tiny_model, machine=LAPTOP)
    assert all(settings.reasons[name] for name in FIELDS)
    assert (settings.engine, settings.device, settings.dtype) == ("torch", "cpu", "float32")
    assert (settings.context, settings.threads) == (1024, 4)
    assert table(settings).row_count == 1 + len(FIELDS)
    assert Settings.from_message(json.loads(json.dumps(settings.to_message()))) == settings


def test_the_cache_is_half_of_what_is_left(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "F32", 4, 1024)  # 84 MB of weights, 16,384 bytes a token
    settings = choose(folder, machine=machine(1.5e9))
    bytes_of_cache = settings.kv_tokens * folder_size(folder).cache("float32")
    assert bytes_of_cache == pytest.approx((1.5e9 - 450e6 - folder_size(folder).weights("float32")) / 2, rel=1e-3)
    assert "/job" in settings.reasons["kv_tokens"]


def test_a_verifier_is_left_room(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "F32", 4, 1024)
    verifier = make_folder(tmp_path / "v", "BF16", 4, 512)
    alone = choose(folder, machine=machine(1.5e9))
    both = choose(folder, verifier=verifier, machine=machine(1.5e9))
    taken = (alone.kv_tokens - both.kv_tokens) * folder_size(folder).cache("float32")
    assert taken == pytest.approx(folder_size(verifier).weights("float32") / 2, rel=1e-2)


def test_flags_are_followed_and_shown(tiny_model: Path) -> None:
    wishes = Wishes(dtype="bfloat16", context=100, kv_tokens=5000, chunk=7, rows=3, threads=1, max_waiting=0)
    settings = choose(tiny_model, wishes, machine=LAPTOP)
    for name in ("dtype", "context", "kv_tokens", "chunk", "rows", "threads", "max_waiting"):
        assert getattr(settings, name) == getattr(wishes, name)
        assert f"fixed by --{name.replace('_', '-')}" in settings.reasons[name]
        assert name not in settings.unsettled
    assert settings.reasons["chunk"] == "fixed by --chunk; else the worker would time it"


def test_float32_gives_way_where_it_leaves_no_cache(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "BF16", 20, 2048)  # 0.35G parameters: 1.4 GB in float32
    settings = choose(folder, machine=machine(1.9e9))
    assert settings.dtype == "bfloat16"
    assert "float32 would leave" in settings.reasons["dtype"]
    assert choose(folder, machine=LAPTOP).dtype == "float32"


def test_context_is_cut_to_what_the_cache_holds(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "F32", 4, 1024, max_position_embeddings=131_072)
    settings = choose(folder, machine=machine(0.8e9))
    assert settings.context == settings.kv_tokens // 2 < 131_072


def test_what_cannot_fit_is_refused_with_bytes_and_a_remedy(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "F32", 20, 4096)  # 1.4G parameters
    with pytest.raises(ValueError, match=r"2\.8\d GB of weights in bfloat16.*has 1\.90 GB free.*GGUF.*GB more"):
        choose(folder, machine=machine(1.9e9))
    small = make_folder(tmp_path / "s", "F32", 4, 1024)
    with pytest.raises(ValueError, match="100,000 tokens of key-value cache"):
        choose(small, Wishes(kv_tokens=100_000), machine=machine(1.9e9))


def test_a_gpu_is_used_and_vllm_where_it_is_installed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "F32", 4, 1024)
    settings = choose(folder, machine=replace(LAPTOP, vram=GPU))
    assert (settings.engine, settings.device, settings.dtype) == ("torch", "cuda", "bfloat16")
    assert "GPU 0" in settings.reasons["device"]
    both = replace(LAPTOP, vram=GPU, vllm=True)
    chosen = choose(folder, machine=both)
    assert (chosen.engine, chosen.chunk, chosen.rows) == ("vllm", 2048, 256)
    assert chosen.unsettled == ("kv_tokens",)
    assert choose(folder, Wishes(kv_tokens=9000), machine=both).unsettled == ()
    with pytest.raises(ValueError, match="vLLM is not installed here"):
        choose(folder, Wishes(engine="vllm"), machine=LAPTOP)
    assert choose(folder, Wishes(engine="torch"), machine=both).engine == "torch"
    on_cpu = choose(folder, Wishes(device="cpu"), machine=both)
    assert (on_cpu.engine, on_cpu.device, on_cpu.dtype) == ("torch", "cpu", "float32")
    assert choose(make_folder(tmp_path / "h", "F16", 2, 64), machine=replace(LAPTOP, vram=GPU)).dtype == "float16"


def test_a_model_with_a_verifier_keeps_its_search_or_is_said_to_lose_it(tmp_path: Path) -> None:
    folder, verifier = make_folder(tmp_path / "m", "F32", 4, 1024), make_folder(tmp_path / "v", "F32", 2, 64)
    both = replace(LAPTOP, vram=GPU, vllm=True)
    kept = choose(folder, verifier=verifier, machine=both)
    assert (kept.engine, kept.verifier) == ("torch", verifier)
    assert "a verifier, and vLLM has no search" in kept.reasons["engine"]
    fixed = choose(folder, Wishes(engine="vllm"), verifier, both)
    assert (fixed.engine, fixed.verifier) == ("vllm", None)
    assert "search is off" in fixed.reasons["verifier"]
    [*_, shown] = table(fixed).columns[1].cells
    assert (shown, table(fixed).row_count) == ("none", 2 + len(FIELDS))


def test_a_gguf_is_for_llama_cpp_with_slots_that_fit(tiny_gguf: Path) -> None:
    settings = choose(tiny_gguf, machine=LAPTOP)
    assert (settings.engine, settings.model, settings.context, settings.rows) == ("llamacpp", tiny_gguf, 1024, 8)
    assert settings.kv_tokens == settings.rows * settings.context
    each = 2 * gguf_size(tiny_gguf).cache_numbers
    tight = choose(tiny_gguf, machine=machine(200e6 + gguf_size(tiny_gguf).stored + 2.2 * each * 1024 * 2))
    assert (tight.context, tight.rows) == (1024, 2)
    with pytest.raises(ValueError, match="does not fit"):
        choose(tiny_gguf, machine=machine(100e6))


def test_the_verifier_of_a_gguf_is_left_room_and_so_is_torch(tmp_path: Path, tiny_gguf: Path) -> None:
    verifier = make_folder(tmp_path / "v", "BF16", 4, 512)
    settings = choose(tiny_gguf, verifier=verifier, machine=LAPTOP)
    kept = folder_size(verifier).weights("float32")
    assert (settings.verifier, settings.search_budget) == (verifier, settings.kv_tokens // 2)
    assert gb(kept) in settings.reasons["verifier"] and "for torch" in settings.reasons["verifier"]
    each = 2 * gguf_size(tiny_gguf).cache_numbers
    without = 200e6 + gguf_size(tiny_gguf).stored + 4.2 * each * 1024 * 2
    assert choose(tiny_gguf, machine=machine(without)).rows == 4
    assert choose(tiny_gguf, verifier=verifier, machine=machine(without + TORCH + kept)).rows == 4
    with pytest.raises(ValueError, match="for the process with its verifier"):
        choose(tiny_gguf, verifier=verifier, machine=machine(without + TORCH))


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        (Wishes(chunk=0), "--chunk is 0"),
        (Wishes(kv_tokens=-1), "--kv-tokens is -1"),
        (Wishes(max_waiting=-1), "--max-waiting is -1"),
        (Wishes(dtype="int8"), "--dtype int8"),
        (Wishes(engine="ollama"), "--engine ollama"),  # type: ignore[arg-type]
        (Wishes(engine="llamacpp"), "export it first"),
        (Wishes(device="cuda"), "no GPU"),
        (Wishes(context=5000), "--context 5000 is more than the 1024 positions"),
        (Wishes(context=1000, kv_tokens=500), "--context 1000 is more than the 500 tokens"),
    ],
)
def test_a_flag_that_cannot_be_followed_is_refused(tiny_model: Path, wishes: Wishes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        choose(tiny_model, wishes, machine=LAPTOP)


def test_what_is_not_there_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        choose(tmp_path / "nothing", machine=LAPTOP)
    with pytest.raises(ValueError, match="choose another file"):
        choose(tiny_gguf, Wishes(dtype="bfloat16"), machine=LAPTOP)


def test_the_clock_settles_what_was_left_open_and_nothing_else(tiny_model: Path) -> None:
    import torch

    from engine.load import load_model, load_tree
    from serve.probe import before_loading, settle

    threads = torch.get_num_threads()
    try:
        open_ = before_loading(choose(tiny_model, Wishes(threads=1), machine=LAPTOP))
        assert open_.dtype == "float32", "weights in float32 are never rounded unasked"
        assert "times as fast" in open_.reasons["dtype"]
        tree = load_tree(load_model(tiny_model, "cpu", open_.dtype), open_.context)
        settled = settle(open_, tree)
        fixed = settle(choose(tiny_model, Wishes(chunk=7, rows=3, kv_tokens=900, max_waiting=5), machine=LAPTOP), tree)
    finally:
        torch.set_num_threads(threads)
    assert "tokens/s" in settled.reasons["chunk"] and "ms with one row" in settled.reasons["rows"]
    assert settled.chunk in [32 << power for power in range(7)] and settled.rows in [8 << power for power in range(6)]
    assert settled.kv_tokens == 256 * 1024
    assert (fixed.chunk, fixed.rows, fixed.kv_tokens, fixed.max_waiting) == (7, 3, 900, 5)


def test_one_slow_measurement_does_not_make_rows_free(tmp_path: Path) -> None:
    from serve.probe import ROWS, _rows

    settings = settings_of(tmp_path, kv_tokens=1 << 20, unsettled=("rows", "max_waiting"))
    noisy = _rows(settings, one=0.05, eight=0.05, per_token=0.003)
    assert (noisy.rows, noisy.max_waiting) == (32, 64)
    assert _rows(settings, one=0.001, eight=0.001, per_token=1e-5).rows == ROWS[1]


def test_a_release_is_served_from_its_gguf_and_with_torch_from_its_weights(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "release"))
    for name in ("Tiny-Q8_0.gguf", "Tiny-F16.gguf"):
        shutil.copyfile(tiny_gguf, folder / name)
    assert choose(folder, machine=LAPTOP).model == folder / "Tiny-F16.gguf"
    assert choose(folder, Wishes(engine="torch"), machine=LAPTOP).model == folder


def test_what_holds_no_model_is_refused_by_what_it_is(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    with registry.build(Spec("toy", 1, "corpus", {})) as build:
        (build.out / "text").write_text("x")
        registry.tag("b/corpus", build.publish().key)
    with pytest.raises(StepFailed, match="b/corpus is a corpus: name a model"):
        find_model(registry, "b/corpus")
    with pytest.raises(ValueError, match="is no model folder") as refused:
        choose(tmp_path, machine=LAPTOP)
    assert "None" not in str(refused.value)
