"""Time of a GGUF export beside a plain file copy, and of the whole gate around it.

`python -m benchmarks.export_gate [--width 256] [--layers 8] [--types f16 q8_0] [--repeats 3]
[--model FOLDER]`

The model is random and synthetic; only its size matters. Conversion is measured in MB of the fp32 safetensors read per
second and stands beside `shutil.copyfile` of the same file: the ratio says how far the export is from the disk. Ways
take turns and the best time counts. The gate is the `gguf` stage as a recipe runs it (imports outside): writing,
tokenizer, template, greedy and distribution parity.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
        tokenizer = _run(TOKENIZER, folder / "tokenizer", {"vocab_size": arguments.vocab_size}, {"corpus": corpus})
        model = arguments.model or make_model(tokenizer, folder / "model", arguments.width, arguments.layers)
        conversion = measure_conversion(model, folder, arguments.types, arguments.repeats)
        gate, kls = measure_gate(model, corpus, folder, arguments.types)
        print_table((model / "model.safetensors").stat().st_size, conversion, gate, kls)


def measure_conversion(model: Path, folder: Path, types: list[str], repeats: int) -> dict[str, float]:
    """Best seconds of a copy of the weights and of a conversion to each type."""
    from export.gguf import write_gguf

    source, target = model / "model.safetensors", folder / "target"
    ways: dict[str, Callable[[], object]] = {"copy": lambda: shutil.copyfile(source, target)}
    for kind in types:
        ways[kind] = partial(write_gguf, model, target, kind, {"name": "benchmark"})
    best: dict[str, float] = {}
    for repeat in range(repeats + 1):  # the first turn imports and warms the page cache
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds = time.perf_counter() - started
            target.unlink()
            if repeat:
                best[name] = min(seconds, best.get(name, float("inf")))
    return best


def measure_gate(model: Path, corpus: Path, folder: Path, types: list[str]) -> tuple[float, dict[str, float]]:
    """Seconds, and mean KL per type, of the `gguf` stage with its default proof; torch is imported before."""
    from export.reference import Reference

    Reference(model, "cpu")
    started = time.perf_counter()
    out = _run(GGUF, folder / "gguf", {"types": types}, {"model": model, "corpus": corpus})
    seconds = time.perf_counter() - started
    proof = json.loads((out / "parity.json").read_text())["types"]
    return seconds, {kind: proof[kind]["kl"] for kind in types}


def print_table(size: int, conversion: dict[str, float], gate: float, kls: dict[str, float]) -> None:
    """The table for people, then one line of JSON."""
    megabytes = size / 1e6
    figures: dict[str, Any] = {"benchmark": "export_gate", "weights_mb": round(megabytes, 1)}
    print(f"{'way':<10}{'seconds':>10}{'MB/s':>10}{'of a copy':>12}{'mean KL':>12}")
    for name, seconds in conversion.items():
        ratio = conversion["copy"] / seconds
        print(f"{name:<10}{seconds:>10.3f}{megabytes / seconds:>10.0f}{ratio:>11.2f}x{kls.get(name, 0.0):>12.2e}")
        figures |= {f"{name}_mb_per_second": round(megabytes / seconds, 1), f"{name}_of_copy": round(ratio, 3)}
    figures |= {f"{kind}_kl": kl for kind, kl in kls.items()}
    del figures["copy_of_copy"]
    print(f"{'gate':<10}{gate:>10.3f}   the whole stage, {len(conversion) - 1} types")
    print(json.dumps(figures | {"gate_seconds": round(gate, 2)}))


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
