"""Time of a GGUF export beside a plain file copy, and of the whole gate around it.

`python -m benchmarks.export_gate [--width 256] [--layers 8] [--vocab-size 1024] [--types f16 q8_0] [--repeats 3]
[--model FOLDER]`; `--width 576 --layers 30 --vocab-size 49152` is SmolLM2-135M's shape.

The model is random and synthetic; only its size matters. A vocabulary beyond what the corpus yields is filled up with
merges of random entries. Conversion is measured in MB of the fp32 safetensors read per second, twice: into the page
cache, beside `shutil.copyfile` of the safetensors there, and with an fsync at the end, beside a copy of the safetensors
with one (`to_disk`: from 1.0 on a conversion keeps up with a disk that takes the weights) and beside a copy of the
finished GGUF with one (`of_disk`: what the disk needs for these very bytes). `numpy` is gguf-py's own way to Q8_0.
Ways take turns and the best time counts. The gate is the `gguf` stage as a recipe runs it (imports outside): writing
and all parities; its CPU seconds do not depend on who else computes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gguf

from acorn.stage import Job, Stage
from corpus.stage import PROBLEMS, TOKENIZER
from export.stage import STAGES

GGUF = STAGES[0]


def main() -> None:
    os.environ["WANDB_MODE"] = "disabled"
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="acorn-export-") as name:
        folder = Path(name)
        corpus = _run(PROBLEMS, folder / "corpus", {"documents": 2000, "validation_documents": 64}, {})
        size = min(arguments.vocab_size, 1024)
        tokenizer = _run(TOKENIZER, folder / "tokenizer", {"vocab_size": size}, {"corpus": corpus})
        fill_up(tokenizer, arguments.vocab_size)
        model = arguments.model or make_model(tokenizer, folder / "model", arguments.width, arguments.layers)
        conversion = measure_conversion(model, folder, arguments.types, arguments.repeats)
        gate, cpu, kls = measure_gate(model, corpus, folder, arguments.types)
        print_table((model / "model.safetensors").stat().st_size, conversion, gate, cpu, kls)


Seconds = tuple[float, float]
"""Of a way into the page cache, and to the disk (with an fsync)."""


def measure_conversion(model: Path, folder: Path, types: list[str], repeats: int) -> dict[str, Seconds]:
    """Best seconds of a copy of the weights, of a conversion to each type, and of a copy of its result."""
    from export import blocks
    from export.gguf import write_gguf

    def as_gguf_py() -> None:
        with mock.patch.object(blocks, "encode", lambda matrix, kind: gguf.quants.quantize(matrix.numpy(), kind)):
            write_gguf(model, target, "q8_0", {"name": "benchmark"})

    source, target = model / "model.safetensors", folder / "target"
    ways: dict[str, Callable[[], object]] = {"copy": lambda: shutil.copyfile(source, target)}
    for kind in types:
        finished = folder / f"finished-{kind}"
        write_gguf(model, finished, kind, {"name": "benchmark"})
        ways[f"copy_{kind}"] = partial(shutil.copyfile, finished, target)
        ways[kind] = partial(write_gguf, model, target, kind, {"name": "benchmark"})
    if "q8_0" in types:
        ways["numpy"] = as_gguf_py
    best: dict[str, Seconds] = {}
    for repeat in range(repeats + 1):  # the first turn imports and warms the page cache
        for name, way in ways.items():
            taken = _timed(way, target)
            if repeat:
                kept = best.get(name, taken)
                best[name] = min(taken[0], kept[0]), min(taken[1], kept[1])
    return best


def _timed(way: Callable[[], object], target: Path) -> Seconds:
    started = time.perf_counter()
    way()
    cached = time.perf_counter() - started
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return cached, seconds


def measure_gate(model: Path, corpus: Path, folder: Path, types: list[str]) -> tuple[float, float, dict[str, float]]:
    """Seconds, CPU seconds, and mean KL per type, of the `gguf` stage with its default proof; torch is imported before.

    The thresholds of quantised types are lifted: a random model of many layers has no business with them.
    """
    from export.reference import Reference

    Reference(model, "cpu")
    lifted = [kind for kind in types if kind not in ("f32", "f16")]
    proof = {"max_kl": dict.fromkeys(lifted, 1e9), "min_top1": dict.fromkeys(lifted, 0.0)}
    started, before = time.perf_counter(), time.process_time()
    out = _run(GGUF, folder / "gguf", {"types": types, "proof": proof}, {"model": model, "corpus": corpus})
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    found = json.loads((out / "parity.json").read_text())["types"]
    return seconds, cpu, {kind: found[kind]["kl"] for kind in types}


def print_table(size: int, conversion: dict[str, Seconds], gate: float, cpu: float, kls: dict[str, float]) -> None:
    """The table for people, then one line of JSON."""
    megabytes = size / 1e6
    figures: dict[str, Any] = {"benchmark": "export_gate", "weights_mb": round(megabytes, 1)}
    titles = f"{'of a copy':>12}{'with fsync':>12}{'to disk':>11}{'of disk':>12}{'mean KL':>12}"
    print(f"{'way':<10}{'seconds':>10}{'MB/s':>10}{titles}")
    for name, (cached, synced) in conversion.items():
        of_copy = conversion["copy"][0] / cached
        print(f"{name:<10}{cached:>10.3f}{megabytes / cached:>10.0f}{of_copy:>11.2f}x{synced:>12.3f}", end="")
        figures |= {f"{name}_mb_per_second": round(megabytes / cached, 1), f"{name}_of_copy": round(of_copy, 3)}
        if (bytes_alone := conversion.get(f"copy_{name}")) is None:
            print()
            continue
        to_disk, of_disk = conversion["copy"][1] / synced, bytes_alone[1] / synced
        print(f"{to_disk:>10.2f}x{of_disk:>11.2f}x{kls[name]:>12.2e}")
        figures |= {f"{name}_to_disk": round(to_disk, 3), f"{name}_of_disk": round(of_disk, 3), f"{name}_kl": kls[name]}
    del figures["copy_of_copy"]
    print(f"{'gate':<10}{gate:>10.3f}   the whole stage, {len(kls)} types; {cpu:.1f} CPU seconds")
    print(json.dumps(figures | {"gate_seconds": round(gate, 2), "gate_cpu_seconds": round(cpu, 2)}))


def fill_up(tokenizer: Path, size: int) -> None:
    """Bring the vocabulary of a tokenizer folder to `size` entries: merges of random ones, at most 16 characters."""
    path = tokenizer / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    entries = [entry for entry in vocabulary if not entry.startswith("<|")]
    rng = random.Random(0)
    while len(vocabulary) < size:
        left, right = rng.choice(entries), rng.choice(entries)
        if left + right not in vocabulary and len(left + right) <= 16:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
            entries.append(left + right)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def make_model(tokenizer: Path, folder: Path, width: int, layers: int) -> Path:
    """A random Llama folder with `tokenizer`'s files: heads of 64; a key-value head per three, else one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    heads = max(1, width // 64)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else 1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=[2, 0],
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    return folder


def _run(stage: Stage, folder: Path, config: dict[str, Any], inputs: dict[str, Path]) -> Path:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    job = Job(
        recipe="benchmark",
        step=stage.name,
        stage=stage.name,
        config=stage.identity.model_validate(config),
        execution=stage.execution.model_validate({"device": "cpu"} if stage is GGUF else {}),
        inputs=inputs,
        digests=dict.fromkeys(inputs, ""),
        out=out,
        scratch=scratch,
        group="benchmark",
    )
    stage.load(stage.run)(job)
    return out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--model", type=Path, help="a Llama folder of your own instead (one safetensors file)")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
