"""SFT tokens a second: acorn's stage against a bare torch loop on the same model and batches, and what packing gains.

    python -m benchmarks.sft_step [--width 192] [--layers 4] [--steps 16] [--turns 3]

The stage runs with all that it does in a recipe (TRL's trainer, its metrics, the tracker, the checks before every
update), but without a checkpoint, which has its own price. The bare loop is what one would write:
`model(**batch).loss`, backward, clip, AdamW. A second one computes the head's logits at trained positions alone, as the
stage does. All train the same weights on the same batches, and the losses are compared. Rows have up to 256 tokens;
counted are real tokens, no padding. Ways take turns; the best turn of each counts, without its first two steps. The
clock is the process's own CPU time with one thread, so that a busy machine does not decide.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.models import make_llama

ROWS, BATCH, LENGTH, WARM = 512, 16, 256, 2
RATE = 1e-4
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<end>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<end>' }}{% endif %}{% endfor %}"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    for name, default in (("width", 192), ("layers", 4), ("steps", 16), ("turns", 3)):
        options.add_argument(f"--{name}", type=int, default=default)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), asked.width, asked.layers, asked.steps, asked.turns)))


def measure(folder: Path, width: int, layers: int, steps: int, turns: int) -> dict[str, Any]:
    """Figures of all ways; prints a table."""
    import torch

    torch.set_num_threads(1)
    model = make_llama(folder / "model", width, layers, positions=LENGTH)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    write_rows(folder / "chat")
    best: dict[str, float] = {}
    losses: dict[str, float] = {}
    for turn in range(turns):
        batches = list(bare_batches(folder / f"rows{turn}", model, folder / "chat", steps))
        ways = {
            "acorn": lambda turn=turn: stage(folder / f"plain{turn}", model, folder / "chat", steps, packing=False),
            "bare loop": lambda batches=batches: bare(model, batches, trained_only=False),
            "bare, trained positions": lambda batches=batches: bare(model, batches, trained_only=True),
            "acorn, packed": lambda turn=turn: stage(folder / f"packed{turn}", model, folder / "chat", steps, True),
        }
        for name, run in ways.items():
            speed, losses[name] = run()
            best[name] = max(best.get(name, 0.0), speed)
    print(f"{'way':26} {'tokens/s':>10} {'mean loss':>12}")
    for name, speed in best.items():
        print(f"{name:26} {speed:10,.0f} {losses[name]:12.5f}")
    return {
        "benchmark": "sft_step",
        "ratio_vs_bare_loop": round(best["acorn"] / best["bare loop"], 3),
        "ratio_vs_bare_trained_positions": round(best["acorn"] / best["bare, trained positions"], 3),
        "packing_gain": round(best["acorn, packed"] / best["acorn"], 3),
        "loss_difference": abs(losses["acorn"] - losses["bare loop"]),
        **{f"tokens_per_second/{name}": round(speed, 1) for name, speed in best.items()},
    }


def write_rows(folder: Path) -> None:
    """Conversations of made-up words, most of them short, as chats are."""
    draw = random.Random(0)
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(ROWS):
            texts = [
                "".join(draw.choices("abcdefghij ", k=round(min(300, draw.lognormvariate(4.2, 0.8))))) for _ in "ab"
            ]
            roles = zip(("user", "assistant"), texts, strict=True)
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in roles]}) + "\n")


def job(folder: Path, model: Path, chat: Path, steps: int, packing: bool) -> Any:
    """The `sft` step as the spine hands it to a worker."""
    from acorn.stage import Job
    from posttrain.stage import STAGES

    stage = STAGES[0]
    training = {"max_steps": steps, "max_length": LENGTH, "learning_rate": RATE, "lr_scheduler_type": "constant"}
    # A packed row holds as much as several: as many tokens a step, or the ways would not be comparable.
    config = {"global_batch_size": BATCH // 4 if packing else BATCH, "end_of_turn": "<end>", "max_truncated": 1.0}
    (folder / "out").mkdir(parents=True)
    return Job(
        recipe="benchmark",
        step="sft",
        stage="sft",
        config=stage.identity.model_validate({**config, "training": {**training, "packing": packing}}),
        execution=stage.execution.model_validate({"device": "cpu", "logging_steps": steps, "save_steps": 10 * steps}),
        inputs={"model": model, "chat": chat},
        digests={"model": "", "chat": ""},
        out=folder / "out",
        scratch=folder,
        group="benchmark",
    )


def stage(folder: Path, model: Path, chat: Path, steps: int, packing: bool) -> tuple[float, float]:
    """(tokens a second, mean loss) of the stage's own code."""
    from transformers import TrainerCallback

    from posttrain import trl

    seen: list[tuple[float, int]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.append((time.process_time(), self.trainer._total_train_tokens))

    built: list[Any] = []
    build = trl.build_sft

    def with_clock(job: Any) -> Any:
        trainer, tokenizer = build(job)
        trainer.add_callback(Clock(trainer))
        built.append(trainer)
        return trainer, tokenizer

    trl.build_sft = with_clock
    try:
        trl.sft(job(folder, model, chat, steps, packing))
    finally:
        trl.build_sft = build
    (start, before), (end, after) = seen[WARM - 1], seen[-1]
    shutil.rmtree(folder)
    return (after - before) / (end - start), _last_loss(built[0])


def _last_loss(trainer: Any) -> float:
    return float(next(line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line))


def bare_batches(folder: Path, model: Path, chat: Path, steps: int) -> Iterator[dict[str, Any]]:
    """The batches that the stage trains on, in its order."""
    from posttrain.training import cleared_state
    from posttrain.trl import build_sft

    with cleared_state():
        trainer, _ = build_sft(job(folder, model, chat, steps, packing=False))
        loader = trainer.get_train_dataloader()
        while True:
            for batch in loader:
                yield {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
                steps -= 1
                if not steps:
                    return


def bare(folder: Path, batches: list[dict[str, Any]], trained_only: bool) -> tuple[float, float]:
    """(tokens a second, mean loss) of a plain loop; logits at every position, or at trained ones alone."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    tokens, total, started = 0, 0.0, 0.0
    for number, batch in enumerate(batches):
        if number == WARM:
            tokens, started = 0, time.process_time()
        if trained_only:
            hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            labels = batch["labels"][:, 1:]
            trained = labels != -100
            logits = model.lm_head(hidden.last_hidden_state[:, :-1][trained])
            loss = cross_entropy(logits, labels[trained])
        else:
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        tokens += int(batch["attention_mask"].sum())
    return tokens / (time.process_time() - started), total / len(batches)


if __name__ == "__main__":
    main()
