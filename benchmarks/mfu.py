"""Tokens per second and MFU of pre-training in bf16 on one GPU: acorn (nanotron), transformers' Trainer, a bare loop.

    python -m benchmarks.mfu [--sizes 135m 360m 1.7b] [--micro 8] [--recompute]
    python -m benchmarks.mfu --device cpu --sizes toy --no-compile    runs everything once, without an MFU

The three take turns in one run, each with its own copy of the model, of which one at a time is on the GPU: SmolLM2's
shapes, sequences of 2,048 tokens, random weights and tokens, AdamW. The bare loop is transformers' Llama under
`torch.compile` with bf16 autocast and SDPA, as one would write it by hand; Trainer runs with `bf16`, fused AdamW and
`torch_compile`. The median step counts, without the first ones. FLOPs by the formula of docs/pretrain.md, for all three
alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acorn.tracking import Tracker
from benchmarks.pretrain_step import wait_for, write_tokens
from pretrain import compat
from pretrain.arguments import nanotron_config, split_batch
from pretrain.checkpoints import CheckpointFolder
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.data import TokenFile, micro_batches
from pretrain.estimate import flops_per_token
from pretrain.run import process_group

SIZES: dict[str, dict[str, int]] = {
    # SmolLM2's published shapes; a vocabulary of 49,152, tied.
    "135m": {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocab": 49152},
    "360m": {"hidden": 960, "inner": 2560, "layers": 32, "heads": 15, "kv_heads": 5, "vocab": 49152},
    "1.7b": {"hidden": 2048, "inner": 8192, "layers": 24, "heads": 32, "kv_heads": 32, "vocab": 49152},
    "toy": {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 512},
}


def main() -> None:
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU here, and MFU is of a GPU; --device cpu --sizes toy --no-compile only shows that it runs"
        )
    compat.install(options.device, compat.uses_flash_attention(options.device, "bfloat16"))
    from pretrain.nanotron import peak_flops

    peak = peak_flops(options.device, "bfloat16")
    rows = []
    for size in options.sizes:
        config, execution = configure(size, options)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_tokens(folder, SIZES[size]["vocab"], options.batch * options.sequence * 20)
            for side, train in {"acorn": acorn, "Trainer": hf_trainer, "bare loop": bare_loop}.items():
                seconds = train(config, execution, options, folder)
                speed = config.tokens_per_step / statistics.median(seconds[options.warmup :])
                mfu = None if peak is None else speed * flops_per_token(config, SIZES[size]["vocab"]) / peak
                rows.append({"size": size, "side": side, "tokens_per_second": round(speed), "mfu": mfu,
                             "peak_memory_gb": peak_memory(options.device)})  # fmt: skip
                print(row_text(rows[-1]), flush=True)
                free(options.device)
    report(rows, options, peak)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["135m", "360m", "1.7b"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--recompute", action="store_true", help="acorn recomputes its layers; the others keep theirs")
    parser.add_argument("--no-compile", action="store_true", help="neither Trainer nor the bare loop compiles")
    for name, default, text in (
        ("sequence", 2048, ""), ("batch", 16, "sequences a step"), ("micro", 4, "sequences a forward pass"),
        ("steps", 12, "of each side"), ("warmup", 4, "of these that do not count"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    return parser.parse_args()


def configure(size: str, options: argparse.Namespace) -> tuple[PretrainConfig, PretrainExecution]:
    shape = SIZES[size]
    config = PretrainConfig(
        model={
            "hidden_size": shape["hidden"],
            "intermediate_size": shape["inner"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["kv_heads"],
            "tie_word_embeddings": True,
        },
        steps=options.steps,
        sequence_length=options.sequence,
        global_batch_size=options.batch,
        learning_rate_scheduler={"learning_rate": 1e-4, "lr_warmup_steps": 2},
        dtype="bfloat16",
    )
    execution = PretrainExecution(
        device=options.device, micro_batch_size=options.micro, checkpoint_interval=10**9, recompute=options.recompute
    )
    return config, execution


def acorn(
    config: PretrainConfig, execution: PretrainExecution, options: argparse.Namespace, folder: Path
) -> list[float]:
    """Seconds of each step of the stage's own trainer."""
    from pretrain.nanotron import Run, Trainer, quieten

    quieten()
    vocab = json.loads((folder / "meta.json").read_text())["vocab_size"]
    arguments = nanotron_config(config, execution, split_batch(config, execution, 1), vocab, folder / "saved", None)
    train = TokenFile.open(folder, "train", options.sequence)
    with process_group(options.device):
        work = Run(config, execution, train, train, 1, CheckpointFolder(folder), Tracker(None), options.device)
        trainer: Any = Trainer(arguments, work, folder / "nanotron.yaml")
        ends = Ends(options.device)
        log, trainer.post_training = trainer.train_step_logs, lambda: None
        trainer.train_step_logs = lambda **values: (log(**values), ends.note())
        ends.note()
        trainer.fit()
    return ends.seconds()


def llama(config: PretrainConfig, options: argparse.Namespace, folder: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab = json.loads((folder / "meta.json").read_text())["vocab_size"]
    shape = LlamaConfig(vocab_size=vocab, max_position_embeddings=options.sequence, use_cache=False, **config.model)
    return LlamaForCausalLM(shape).to(options.device)


def bare_loop(
    config: PretrainConfig, execution: PretrainExecution, options: argparse.Namespace, folder: Path
) -> list[float]:
    """A loop over a compiled forward pass with its loss."""
    model = llama(config, options, folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    forward: Callable[[torch.Tensor], torch.Tensor] = loss_of if options.no_compile else torch.compile(loss_of)
    file = TokenFile.open(folder, "train", options.sequence)
    batches = micro_batches(file, 0, 0, options.micro, 0, 1)
    ends = Ends(options.device)
    ends.note()
    for _ in range(options.steps):
        for _ in range(options.batch // options.micro):
            tokens = torch.from_numpy(next(batches)).to(options.device)
            with torch.autocast(options.device, torch.bfloat16):
                loss = forward(tokens)
            (loss * (options.micro / options.batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        ends.note()
    return ends.seconds()


def hf_trainer(
    config: PretrainConfig, execution: PretrainExecution, options: argparse.Namespace, folder: Path
) -> list[float]:
    """transformers' Trainer on the same token file."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    file, ends = TokenFile.open(folder, "train", options.sequence), Ends(options.device)

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.note()

    def collate(rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(np.stack(rows))[:, :-1]  # Trainer shifts the labels itself
        return {"input_ids": tokens, "labels": tokens}

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=options.steps,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=options.batch // options.micro,
        bf16=True,
        use_cpu=options.device == "cpu",
        torch_compile=not options.no_compile,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        learning_rate=1e-4,
        save_strategy="no",
        report_to=[],
        logging_steps=1000,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=options.device == "cuda",
    )
    rows = [file.window(index) for index in range(file.whole_windows)]
    trainer = Trainer(llama(config, options, folder), arguments, collate, rows, callbacks=[Steps()])
    ends.note()
    trainer.train()
    return ends.seconds()


class Ends:
    """When the steps ended."""

    def __init__(self, device: str) -> None:
        self._device, self._times = device, []

    def note(self) -> None:
        wait_for(self._device)
        self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step; the first note is the start."""
        return [float(taken) for taken in np.diff(self._times)]


def peak_memory(device: str) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 1) if device == "cuda" else None


def free(device: str) -> None:
    """Nothing of one side may be in the way of the next."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def row_text(row: dict[str, Any]) -> str:
    mfu = "" if row["mfu"] is None else f"  {row['mfu']:6.1%} MFU  {row['peak_memory_gb']:6.1f} GB at most"
    return f"{row['size']:>6} {row['side']:>10} {row['tokens_per_second']:12,} tokens/s{mfu}"


def report(rows: list[dict[str, Any]], options: argparse.Namespace, peak: float | None) -> None:
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    flash = "flash-attn" if compat.uses_flash_attention(options.device, "bfloat16") else "SDPA"
    libraries = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "nanotron"))
    print(f"\n{name}; {libraries}; nanotron's attention: {flash}; {vars(options)}")
    if options.device == "cuda" and peak is None:
        print(f"no MFU: acorn/devices.py does not know what {name} can do at best")
    for row in rows:
        print(row_text(row))
    print(json.dumps({"benchmark": "mfu", "device": name, "peak_flops": peak, "rows": rows}))


if __name__ == "__main__":
    main()
