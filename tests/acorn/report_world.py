"""A made-up run of a whole recipe, published through the real registry: what the report's tests draw.

The numbers are invented to be plausible; nothing here is a measurement. `python -m tests.acorn.report_world FOLDER`
writes the page for looking at.
"""

from __future__ import annotations

import json
import math
import random
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acorn.plan import ref_name
from acorn.problems import as_prompt
from acorn.recipe import Recipe, load_recipe
from acorn.resolve import find_inputs, resolve
from corpus.prose import story
from corpus.world import equation_chain, word_problem
from registry import Artifact, Registry

RECIPE = """
name: quickstart
steps:
  corpus: {stage: problems, config: {documents: 300, problems_train: 100, problems_test: 50}}
  tokenizer: {stage: tokenizer, inputs: {corpus: corpus}, config: {vocab_size: 512}}
  tokens: {stage: tokens, inputs: {corpus: corpus, tokenizer: tokenizer}}
  base:
    stage: pretrain
    inputs: {tokens: tokens, tokenizer: tokenizer}
    config:
      model: {hidden_size: 128, intermediate_size: 384, num_hidden_layers: 4, num_attention_heads: 4}
      steps: 1500
      sequence_length: 256
      global_batch_size: 32
      learning_rate_scheduler: {learning_rate: 0.003, lr_warmup_steps: 50, lr_decay_style: cosine, min_decay_lr: 0.0003}
  chat: {stage: chat_data, inputs: {corpus: corpus}}
  sft: {stage: sft, inputs: {model: base, chat: chat}, config: {global_batch_size: 32, training: {learning_rate: 0.01}}}
  pairs: {stage: preference_pairs, inputs: {corpus: corpus, model: sft}}
  dpo: {stage: dpo, inputs: {model: sft, preferences: pairs}, config: {global_batch_size: 16, training: {beta: 0.1}}}
  scores: {stage: evaluate, inputs: {corpus: corpus, base: base, sft: sft, dpo: dpo}}
  large: {stage: search, inputs: {corpus: corpus, model: dpo}, config: {methods: [{name: greedy}]}}
  search:
    stage: search
    inputs: {corpus: corpus, model: sft}
    config: {methods: [{name: greedy}, {name: majority, n: 16}, {name: adaptive, n: 16}]}
  versus: {stage: search_comparison, inputs: {search: search, large: large}, config: {against: [{search: large}]}}
  policy: {stage: search_policy, inputs: {fit: search, apply: search}}
  gguf: {stage: gguf, inputs: {model: dpo, corpus: corpus}}
  answer: {stage: answer, inputs: {gguf: gguf}, config: {prompts: ["What is 2 plus 2?"]}}
"""
LEVELS = range(1, 6)
SOLVED = {
    "base": (0.62, 0.47, 0.22, 0.06, 0.03),
    "sft": (0.99, 0.97, 0.9, 0.66, 0.5),
    "dpo": (1.0, 0.98, 0.94, 0.74, 0.58),
}
REASONS = ("wrong_answer", "wrong_step", "near_duplicate", "contaminated", "unfinished")
LIBRARIES = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "nanotron": "0.4"}


def make_recipe(folder: Path) -> Recipe:
    path = folder / "quickstart.yaml"
    path.write_text(RECIPE)
    return load_recipe(path)


def make_run(
    recipe: Recipe, registry: Registry, until: str | None = None, losses: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Artifact]:
    """Publish and tag an artifact for every step, in order, up to and with `until`. `losses` replaces those logged."""
    made: dict[str, Artifact | None] = {}
    for name, step in recipe.steps.items():
        inputs = find_inputs(recipe, step, made, registry)
        assert not isinstance(inputs, str)
        with registry.build(resolve(step, inputs, registry).spec) as build:
            if build.artifact is not None:
                made[name] = build.artifact
                continue
            figures = FILL[name](build.out, random.Random(name))
            if losses and name in losses:
                rows = [{"step": step, "train/loss": loss} for step, loss in enumerate(losses[name])]
                write_lines(build.out / "logs" / "metrics.jsonl", rows)
            ledger = {"seconds": figures.pop("seconds"), "peak_memory_bytes": 3.1e8 + 4e7 * len(name)}
            ledger |= {entry: figures.pop(entry) for entry in ("tokens", "flops") if entry in figures}
            git = {"commit": "6589642e1b7c4d0a9f3e2b1c0d9e8f7a6b5c4d3e", "dirty": False}
            made[name] = build.publish(figures, ledger, ["Apache-2.0"], LIBRARIES, git)
        registry.tag(ref_name(recipe, name), build.key)
        if name == until:
            break
    return {name: artifact for name, artifact in made.items() if artifact}


def corpus(out: Path, draw: random.Random) -> dict[str, float]:
    documents = [*(equation_chain(draw) for _ in range(60)), *(story(draw) for _ in range(20))]
    rows = [{"text": text, "source": "equations" if index < 60 else "prose"} for index, text in enumerate(documents)]
    puzzles = [word_problem(draw, level) for level in LEVELS for _ in range(10)]
    rows += [{"text": as_prompt(puzzle.question) + puzzle.solution, "source": "problems"} for puzzle in puzzles]
    tests = [
        {"id": f"test-{index:06d}", "level": index // 10 + 1, **puzzle._asdict()}
        for index, puzzle in enumerate(puzzles)
    ]
    write_lines(out / "train" / "00000.jsonl", rows)
    write_lines(out / "problems" / "test.jsonl", tests)
    part = {"equations": 11_032, "problems": 5_980, "prose": 2_988}
    stats = {
        "documents": {"train": part, "validation": {name: amount // 40 for name, amount in part.items()}},
        "characters": {
            "train": {name: 260 * amount for name, amount in part.items()},
            "validation": {name: 6 * amount for name, amount in part.items()},
        },
        "problems": {"train": {str(level): 1000 for level in LEVELS}, "test": {str(level): 100 for level in LEVELS}},
    }
    write(out / "stats.json", stats)
    return {"corpus/train_documents": 20_000, "seconds": 4.1}


def tokenizer(out: Path, _: random.Random) -> dict[str, float]:
    write(out / "tokenizer.json", {"model": {"type": "BPE"}})
    return {"tokenizer/vocabulary": 512, "seconds": 2.6}


def tokens(out: Path, _: random.Random) -> dict[str, float]:
    figures = {"vocab_size": 512, "train_tokens": 1_412_008, "validation_tokens": 35_200, "train_bytes": 5_204_100}
    write(out / "meta.json", {"dtype": "uint16", "validation_bytes": 129_800, **figures})
    return {"tokens/train_tokens": 1_412_008, "seconds": 3.3}


def base(out: Path, draw: random.Random) -> dict[str, float]:
    lines = []
    for step in range(10, 1501, 10):
        loss = 0.62 + 5.6 * math.exp(-step / 130) + draw.gauss(0, 0.025)
        rate = 0.003 * min(1, step / 50) * (0.55 + 0.45 * math.cos(math.pi * step / 1500))
        line = {"train/loss": loss, "train/learning_rate": rate, "train/grad_norm": 0.3 + abs(draw.gauss(0.4, 0.2))}
        lines.append({"step": step, "time": 1e9 + step, **line, "train/tokens_per_second": 21_000 + draw.gauss(0, 900)})
        if step % 250 == 0:
            lines.append(
                {"step": step, "time": 1e9, "validation/loss": loss + 0.04, "validation/bits_per_byte": loss / 2.6}
            )
    write_model(out, lines)
    return {"validation/loss": 0.66, "tokens": 12_288_000, "flops": 6.4e13, "seconds": 583.2}


def sft(out: Path, draw: random.Random) -> dict[str, float]:
    steps = range(10, 401, 10)
    write_model(
        out,
        [
            {
                "step": s,
                "train/loss": 0.21 + 0.5 * math.exp(-s / 60) + draw.gauss(0, 0.008),
                "train/mean_token_accuracy": 0.94,
            }
            for s in steps
        ],
    )
    return {"train/loss": 0.214, "tokens": 1_904_000, "flops": 9.9e12, "seconds": 121.7}


def dpo(out: Path, draw: random.Random) -> dict[str, float]:
    lines = []
    for step in range(5, 151, 5):
        grown = 1 - math.exp(-step / 50)
        rewards = {"train/rewards/chosen": 0.25 * grown, "train/rewards/rejected": -0.9 * grown + draw.gauss(0, 0.04)}
        share = {"train/rewards/accuracies": min(1.0, 0.5 + 0.35 * grown + draw.gauss(0, 0.03))}
        lines.append({"step": step, "train/loss": 0.69 - 0.22 * grown + draw.gauss(0, 0.01), **rewards, **share})
    write_model(out, lines)
    return {"train/loss": 0.47, "tokens": 702_000, "flops": 4.9e12, "seconds": 74.9}


def chat(out: Path, draw: random.Random) -> dict[str, float]:
    rows = []
    for index in range(8):
        puzzle = word_problem(draw, index % 5 + 1)
        messages = [{"role": "user", "content": puzzle.question}, {"role": "assistant", "content": puzzle.solution}]
        rows.append({"id": f"train-{index:06d}", "messages": messages, "source": "problem", "level": index % 5 + 1})
    write_lines(out / "train.jsonl", rows[:4])
    thrown = zip(rows[4:], REASONS, strict=False)
    write_lines(out / "rejected.jsonl", ({**row, "reason": reason} for row, reason in thrown))
    rejected = dict(zip(REASONS, (611, 208, 97, 22, 9), strict=True))
    rates = {str(level): 1 - 0.035 * level for level in LEVELS}
    stats = {"rows": 5947, "kept": 5000, "rejected": rejected, "pass_rate": 0.895, "pass_rate_by_level": rates}
    write(out / "stats.json", stats)
    return {"synth/kept": 5000, "synth/rejected": 947, "tokens": 512_000, "seconds": 38.0}


def pairs(out: Path, draw: random.Random) -> dict[str, float]:
    rows = []
    for index in range(6):
        puzzle = word_problem(draw, index % 5 + 1)
        answers = {
            "prompt": [{"role": "user", "content": puzzle.question}],
            "chosen": [{"role": "assistant", "content": puzzle.solution}],
            "rejected": [{"role": "assistant", "content": spoiled(puzzle.solution, draw)}],
        }
        rows.append({"id": f"train-{index:06d}", **answers, "level": index % 5 + 1, "source": "sampled"})
    write_lines(out / "train.jsonl", rows[:4])
    refused = (
        {"id": row["id"], "prompt": row["prompt"], "level": 1, "reason": "same_score", "samples": ["#### 3"]}
        for row in rows[4:]
    )
    write_lines(out / "rejected.jsonl", refused)
    rates = {str(level): 1 - 0.15 * level for level in LEVELS}
    stats = {"kept": 1204, "rejected": {"same_score": 796}, "pass_rate": 0.55, "pass_rate_by_level": rates}
    write(out / "stats.json", stats)
    return {"synth/kept": 1204, "tokens": 689_000, "seconds": 52.4}


def scores(out: Path, draw: random.Random) -> dict[str, float]:
    tests = [(index, index // 10 + 1, word_problem(draw, index // 10 + 1)) for index in range(50)]
    models: dict[str, Any] = {}
    for role, shares in SOLVED.items():
        samples = []
        for index, level, puzzle in tests:
            right = draw.random() < shares[level - 1]
            prediction = puzzle.solution if right else spoiled(puzzle.solution, draw)
            verdict = {"prediction": prediction, "gold": puzzle.answer, "correct": right}
            samples.append(
                {
                    "task": "acorn:problems",
                    "id": f"own-{index}",
                    "level": level,
                    "prompt": as_prompt(puzzle.question),
                    **verdict,
                }
            )
        write_lines(out / "samples" / f"{role}.jsonl", samples)
        metrics = {"exact_match": share(sum(shares) / 5, 500)}
        metrics |= {f"exact_match_level_{level}": share(shares[level - 1], 100) for level in LEVELS}
        prose = {"bits_per_byte": {"value": 0.91 + 0.06 * len(models), "stderr": 0.012, "n": 200}}
        models[role] = {"acorn:problems": metrics, "acorn:prose": prose}
    write(out / "results.json", {"tasks": {}, "models": models})
    return {f"eval/{role}/acorn:problems/exact_match": sum(shares) / 5 for role, shares in SOLVED.items()} | {
        "seconds": 66.0
    }


def large(out: Path, _: random.Random) -> dict[str, float]:
    write(out / "results.json", {"methods": list(method_rows("greedy", 1, 0.62, 41)), "pass": []})
    return {"seconds": 9.0}


def search(out: Path, _: random.Random) -> dict[str, float]:
    rows = list(method_rows("greedy", 1, 0.41, 40))
    for n in (1, 2, 4, 8, 16):
        rows += method_rows("majority", n, 0.4 + 0.05 * math.log2(n), 40 * n)
        rows += method_rows("adaptive", n, 0.4 + 0.048 * math.log2(n), 31 * n)
    passes = [
        {**row, "k": row["n"], "mean": min(1.0, row["mean"] + 0.2)} for row in rows if row["method"] == "majority"
    ]
    write(out / "results.json", {"methods": rows, "pass": passes})
    return {"seconds": 44.0}


def method_rows(method: str, n: int, accuracy: float, tokens: float) -> Iterable[dict[str, Any]]:
    for level in (None, *LEVELS):
        mean = min(1.0, max(0.0, accuracy if level is None else accuracy + 0.15 * (3 - level)))
        span = {"low": max(0.0, mean - 0.06), "high": min(1.0, mean + 0.06), "problems": 250 if level is None else 50}
        yield {
            "method": method,
            "n": n,
            "level": level,
            "seed": None,
            "mean": mean,
            **span,
            "generated": tokens,
            "scored": 0,
            "tokens": tokens,
        }


def versus(out: Path, _: random.Random) -> dict[str, float]:
    rows = []
    for row in (*method_rows("majority", 16, 0.6, 640), *method_rows("adaptive", 16, 0.59, 496)):
        gained = {name: row[name] - 0.62 for name in ("mean", "low", "high")}
        rows.append({"search": "search", **{name: row[name] for name in ("method", "n", "level")}, **gained})
    write(
        out / "results.json",
        {"tables": [{"baseline": {"search": "large", "method": "greedy", "n": 1}, "differences": rows}]},
    )
    return {"seconds": 0.4}


def policy(out: Path, _: random.Random) -> dict[str, float]:
    curve = []
    for budget in (50, 100, 200, 400, 800):
        row = next(iter(method_rows("majority", 16, 0.3 + 0.1 * math.log10(budget), budget)))
        curve.append({"budget": budget, "policy": row, "single": {**row, "mean": row["mean"] - 0.03}, "hindsight": row})
    bins = [{"method": "majority", "n": n} for n in (16, 8, 4, 2, 1)]
    budgets = [{"budget": row["budget"], "probe": True, "bins": bins, "single": bins[0]} for row in curve]
    write(out / "curve.json", {"curve": curve, "problems": 250})
    write(out / "policy.json", {"probe": 4, "borders": [0.2, 0.4, 0.6, 0.8], "budgets": budgets})
    return {"seconds": 0.6}


def gguf(out: Path, _: random.Random) -> dict[str, float]:
    sheet = {
        "f16": {
            "file": "model-f16.gguf",
            "bytes": 1_804_000,
            "weights": 866_000,
            "bits_per_weight": 16.06,
            "tensor_types": {"F16": 29, "F32": 9},
        },
        "q8_0": {
            "file": "model-q8_0.gguf",
            "bytes": 990_000,
            "weights": 866_000,
            "bits_per_weight": 8.57,
            "tensor_types": {"Q8_0": 29, "F32": 9},
        },
    }
    greedy = {"prompts": 8, "tokens": 190, "equal": 8, "ties": 0}
    kinds = {
        "f16": {"kl": 1.9e-7, "kl_worst": 2.1e-6, "top1": 1.0, "positions": 256, "greedy": greedy},
        "q8_0": {
            "kl": 0.000412,
            "kl_worst": 0.0061,
            "top1": 0.9922,
            "positions": 256,
            "greedy": {**greedy, "equal": 7},
        },
    }
    write(out / "export.json", {"general": {"name": "acorn"}, "types": sheet})
    write(
        out / "parity.json",
        {"tokenizer": {"strings": 2000, "documents": 64}, "template": {"conversations": 12}, "types": kinds},
    )
    write_lines(
        out / "logs" / "metrics.jsonl",
        [{"step": None, "time": 1.0, "export/f16/tokens_per_second": 1410.0, "export/q8_0/tokens_per_second": 1620.0}],
    )
    return {"export/q8_0/kl": 0.000412, "seconds": 21.0}


def answer(out: Path, draw: random.Random) -> dict[str, float]:
    puzzle = word_problem(draw, 3)
    messages = [{"role": "user", "content": puzzle.question}, {"role": "assistant", "content": puzzle.solution}]
    hostile = [{"role": "user", "content": "<b>bold</b>?"}, {"role": "assistant", "content": HOSTILE}]
    rows = [
        {"messages": talk, "finish_reason": "stop", "usage": {"completion_tokens": 61}} for talk in (messages, hostile)
    ]
    write_lines(out / "transcript.jsonl", rows)
    return {"answer/stopped": 1.0, "seconds": 1.2}


HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m\' & so on'
FILL: dict[str, Callable[[Path, random.Random], dict[str, float]]] = {
    "corpus": corpus, "tokenizer": tokenizer, "tokens": tokens, "base": base, "chat": chat, "sft": sft,
    "pairs": pairs, "dpo": dpo, "scores": scores, "large": large, "search": search,
    "versus": versus, "policy": policy, "gguf": gguf, "answer": answer,
}  # fmt: skip


def spoiled(solution: str, draw: random.Random) -> str:
    """`solution` with one equation made wrong, and the final answer with it."""
    steps = solution.split("\n\n")
    index = int(draw.random() * (len(steps) - 1))
    left, _, right = steps[index].rpartition("=")
    steps[index] = f"{left}={int(right) + 1 + int(draw.random() * 9)}"
    return "\n\n".join([*steps[:-1], f"{steps[-1]}0"])


def share(value: float, n: int) -> dict[str, Any]:
    return {"value": round(value, 6), "stderr": math.sqrt(value * (1 - value) / n), "n": n}


def write_model(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A model folder as far as the report reads it: config, a safetensors header, the log."""
    write(out / "config.json", {"model_type": "llama", "hidden_size": 128})
    header = json.dumps({"weights": {"dtype": "F32", "shape": [866, 1000], "data_offsets": [0, 3_464_000]}}).encode()
    (out / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    write_lines(out / "logs" / "metrics.jsonl", lines)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(folder: Path) -> None:
    from acorn.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    recipe, registry = make_recipe(folder), Registry(folder / "home")
    make_run(recipe, registry)
    print(write_report(recipe, registry, folder / "report.html"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
