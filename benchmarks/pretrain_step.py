"""Tokens per second of acorn's pre-training against a bare torch loop over transformers' Llama of the same size.

    python -m benchmarks.pretrain_step [--device cuda --dtype bfloat16 --hidden 576 --layers 30 ...]

Both sides train the same tokens in the same global batches with AdamW and clipping, in one process. They take turns
(`--rounds`), and the fastest step of each counts. On a CPU the clock is the process's own CPU time over its threads:
what it would be on an idle machine, so that a busy one does not decide.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acorn.tracking import Tracker
from pretrain import compat
from pretrain.arguments import nanotron_config, split_batch
from pretrain.checkpoints import CheckpointFolder
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.data import TokenFile, micro_batches
from pretrain.run import process_group


def main() -> None:
    options = parse()
    config = PretrainConfig(
        model={
            "hidden_size": options.hidden,
            "intermediate_size": options.inner,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.kv_heads,
            "tie_word_embeddings": True,
        },
        steps=options.rounds * options.steps,
        sequence_length=options.sequence,
        global_batch_size=options.batch,
        learning_rate_scheduler={"learning_rate": 1e-3, "lr_warmup_steps": 2},
        dtype=options.dtype,
    )
    execution = PretrainExecution(device=options.device, micro_batch_size=options.micro, checkpoint_interval=10**9)
    compat.install(options.device, compat.uses_flash_attention(options.device, options.dtype))
    with tempfile.TemporaryDirectory() as name, process_group(options.device):
        folder = Path(name)
        write_tokens(folder, options.vocab, options.batch * options.sequence * 20)
        steps = {"bare loop": BareLoop(config, options, folder), "acorn": Acorn(config, execution, options, folder)}
        times: dict[str, list[float]] = {side: [] for side in steps}
        for number in range(options.rounds):
            for side, do_steps in steps.items():
                taken = do_steps(options.steps, options.device)
                times[side] += taken if number else taken[options.steps // 2 :]  # the first round warms up
    report(times, config.tokens_per_step, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "hidden": 128, "inner": 352, "layers": 4, "heads": 4, "kv-heads": 2, "vocab": 1024, "sequence": 256,
        "batch": 32, "micro": 16, "steps": 6, "rounds": 6,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


def write_tokens(folder: Path, vocab: int, count: int) -> None:
    """A tokens artifact of random ids."""
    ids = np.random.default_rng(0).integers(0, vocab, count, dtype=np.uint16)
    for split in ("train", "validation"):
        ids.tofile(folder / f"{split}.bin")
    (folder / "meta.json").write_text(json.dumps({"dtype": "uint16", "vocab_size": vocab, "validation_bytes": count}))


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device: str) -> float:
    """Seconds: of this process's CPU per thread, or of the wall on a GPU."""
    return time.perf_counter() if device == "cuda" else time.process_time() / torch.get_num_threads()


class BareLoop:
    """transformers' Llama, AdamW (fused), clipping: what one would write by hand. bfloat16 by autocast."""

    def __init__(self, config: PretrainConfig, options: argparse.Namespace, folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = LlamaConfig(vocab_size=options.vocab, max_position_embeddings=options.sequence, **config.model)
        self.model = LlamaForCausalLM(shape).to(options.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        file = TokenFile.open(folder, "train", options.sequence)
        self.batches = micro_batches(file, 0, 0, options.micro, 0, 1)
        self.accumulation = options.batch // options.micro
        self.autocast = torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def __call__(self, steps: int, device: str) -> list[float]:
        """Seconds of each of `steps` steps."""
        taken = []
        for _ in range(steps):
            start = clock(device)
            for _ in range(self.accumulation):
                tokens = torch.from_numpy(next(self.batches)).to(device)
                with self.autocast:
                    logits = self.model(input_ids=tokens[:, :-1]).logits
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
                (loss / self.accumulation).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
            self.optimizer.step()
            self.optimizer.zero_grad()
            wait_for(device)
            taken.append(clock(device) - start)
        return taken


class Acorn:
    """The stage's own trainer; each call lets nanotron's `train` go on for some steps."""

    def __init__(
        self, config: PretrainConfig, execution: PretrainExecution, options: argparse.Namespace, folder: Path
    ) -> None:
        from pretrain.nanotron import Run, Trainer

        split = split_batch(config, execution, 1)
        arguments = nanotron_config(config, execution, split, options.vocab, folder / "checkpoints", None)
        train = TokenFile.open(folder, "train", options.sequence)
        work = Run(config, execution, train, train, 1, CheckpointFolder(folder), Tracker(None), options.device)
        self.trainer: Any = Trainer(arguments, work, folder / "nanotron.yaml")
        self.ends: list[float] = []
        log, self.trainer.post_training = self.trainer.train_step_logs, lambda: None

        def timed_logs(**values: Any) -> None:
            log(**values)
            wait_for(options.device)
            self.ends.append(clock(options.device))

        self.trainer.train_step_logs = timed_logs

    def __call__(self, steps: int, device: str) -> list[float]:
        trainer = self.trainer
        trainer.config.tokens.train_steps = trainer.start_iteration_step + steps
        self.ends = []
        trainer.fit()
        trainer.start_iteration_step += steps
        return list(np.diff(self.ends))


def report(times: dict[str, list[float]], tokens_per_step: int, options: argparse.Namespace) -> None:
    speed = {side: tokens_per_step / min(taken) for side, taken in times.items()}
    print(f"\n{options.device}, {options.dtype}, {torch.get_num_threads()} threads; {vars(options)}")
    for side, rate in speed.items():
        print(f"{side:>10}  {rate:12,.0f} tokens/s  {min(times[side]) * 1000:9.1f} ms a step")
    figures = {"benchmark": "pretrain_step", "device": options.device, "dtype": options.dtype}
    rates = {f"{side.replace(' ', '_')}_tokens_per_second": round(rate) for side, rate in speed.items()}
    print(json.dumps({**figures, **rates, "ratio_vs_bare_loop": round(speed["acorn"] / speed["bare loop"], 3)}))


if __name__ == "__main__":
    main()
