"""Tokens a second of the `tokens` stage beside two other ways to the same ids.

`python -m benchmarks.tokenise [--documents 20000] [--text FILE] [--repeats 9] [--workers 1]`

All three read the same JSON lines, use the same tokenizer and leave token ids on disk: our stage (which also shuffles),
`datasets.map` with a fast tokenizer (what most training scripts do; ids in Arrow files, no shuffle), and datatrove's
`DocumentTokenizer` alone (shuffles, too). Figures `ratio_vs_datatrove` and `ratio_vs_datasets_map`: above 1 acorn is
faster. Imports are outside. Each way runs in a process forked for it, ours in the environment that acorn gives its
steps. The ways take turns, in another order each time, and a ratio is formed within each turn:
the table has its median and its range, because on a busy machine single turns differ by half. A range that holds 1.0
says that no difference was shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from acorn.launch import environment
from acorn.stage import Job, Stage
from corpus.processes import in_processes
from corpus.stage import PROBLEMS, TEXT, TOKENIZER, TOKENS

OURS = "acorn tokens"


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="acorn-tokenise-") as name:
        folder = Path(name)
        _import_all()
        corpus = _corpus(arguments, folder)
        vocabulary = {"vocab_size": arguments.vocab_size, "documents": 2_000}
        tokenizer = folder / "tokenizer" / "out"
        in_processes(lambda inputs: _run(TOKENIZER, folder / "tokenizer", vocabulary, inputs), [{"corpus": corpus}], 1)
        ways: dict[str, Callable[[Path], int]] = {
            OURS: lambda out: _acorn(corpus, tokenizer, out, arguments.workers),
            "datasets.map": lambda out: _datasets(corpus, tokenizer, out),
            "datatrove": lambda out: _datatrove(corpus, tokenizer, out),
        }
        print_table(measure(ways, folder, arguments.repeats))


def measure(ways: dict[str, Callable[[Path], int]], folder: Path, repeats: int) -> dict[str, list[float]]:
    """Tokens a second of each way, one figure a turn; turns of the same index ran side by side in time."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):  # the first turn warms the page cache
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            out = folder / f"{name.replace(' ', '-')}-{turn}"
            # Forked: a process that has used the library's threads once cannot hand them to workers of its own.
            rate = in_processes(partial(_rate, out), [ways[name]], 1)[0]
            shutil.rmtree(out)
            if turn:
                rates[name].append(rate)
    return rates


def _rate(out: Path, way: Callable[[Path], int]) -> float:
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        tokens = way(out)
    return tokens / (time.perf_counter() - started)


def _import_all() -> None:
    """What the ways import, once, for the processes forked from this one."""
    with contextlib.redirect_stderr(io.StringIO()):  # where datatrove's log then goes
        for name in ("datasets", "transformers", "datatrove.pipeline.tokens", "corpus.tokens", "corpus.tokenizers"):
            import_module(name)


def print_table(rates: dict[str, list[float]]) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "tokenise", "turns": len(rates[OURS])}
    print(f"{'way':<14}{'tokens/s':>12}   acorn is (median, range of {len(rates[OURS])} turns)")
    for name, own in rates.items():
        key = name.replace(" ", "_").replace(".", "_")
        ratios = [ours / other for ours, other in zip(rates[OURS], own, strict=True)]
        low, middle, high = min(ratios), median(ratios), max(ratios)
        print(f"{name:<14}{median(own):>12,.0f}   {middle:.2f}x ({low:.2f} to {high:.2f})")
        figures[f"{key}_tokens_per_second"] = round(median(own))
        if name != OURS:
            figures[f"ratio_vs_{key}"] = round(middle, 3)
            figures[f"ratio_vs_{key}_range"] = [round(low, 3), round(high, 3)]
    print(json.dumps(figures))


def _acorn(corpus: Path, tokenizer: Path, out: Path, workers: int) -> int:
    tokens = _run(TOKENS, out, {}, {"corpus": corpus, "tokenizer": tokenizer}, {"workers": workers})
    meta = json.loads((tokens / "meta.json").read_text())
    return int(meta["train_tokens"] + meta["validation_tokens"])  # the held-out ones are its work, too


def _datasets(corpus: Path, tokenizer: Path, out: Path) -> int:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    files = [str(path) for path in sorted((corpus / "train").glob("*.jsonl"))]
    rows = load_dataset("json", data_files=files, split="train", cache_dir=str(out / "cache"))

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = encode(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[encode.bos_token_id, *row] for row in ids]}

    mapped = rows.map(tokenise, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)
    mapped.save_to_disk(str(out / "tokens"))
    lengths = mapped.with_format("arrow")[:]["input_ids"]
    return int(sum(len(chunk.flatten()) for chunk in lengths.chunks))


def _datatrove(corpus: Path, tokenizer: Path, out: Path) -> int:
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    from corpus.reading import texts

    step = DocumentTokenizer(str(out), str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>", seed=0)
    step.run(Document(text=text, id=str(index)) for index, text in enumerate(texts(corpus, "train")))
    return sum(path.stat().st_size for path in out.glob("*.ds")) // 2


def _corpus(arguments: argparse.Namespace, folder: Path) -> Path:
    if arguments.text:
        config = {"license": "unknown", "text": [{"path": arguments.text}]}
        return _run(TEXT, folder / "corpus", config, {})
    return _run(PROBLEMS, folder / "corpus", {"documents": arguments.documents}, {})


def _run(stage: Stage, folder: Path, config: dict[str, Any], inputs: dict[str, Path], execution: Any = None) -> Path:
    """Run a stage without a registry; gives the folder that it wrote."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    job = Job(
        recipe="benchmark",
        step=stage.name,
        stage=stage.name,
        config=stage.identity.model_validate(config),
        execution=stage.execution.model_validate(execution or {}),
        inputs=inputs,
        digests={},
        out=out,
        scratch=scratch,
        group="benchmark",
    )
    with contextlib.redirect_stderr(io.StringIO()), patch.dict(os.environ, environment(job.execution, folder)):
        stage.load(stage.run)(job)
    return out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=20_000, help="documents of the procedural world")
    parser.add_argument("--text", help="file or folder of own text instead")
    parser.add_argument("--vocab-size", type=int, default=1_024)
    parser.add_argument("--workers", type=int, default=1, help="processes of acorn's stage")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    main()
