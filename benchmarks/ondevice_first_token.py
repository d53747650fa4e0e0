"""Time from starting `acorn chat FILE --prompt ...` to its first character, and where it goes.

`python -m benchmarks.ondevice_first_token [--type f16] [--repeats 5] [--model FILE.gguf]`

Without --model the file is random, of SmolLM2-135M's shape (134.5M parameters, 30 layers, 49,152 tokens). The whole is
measured from outside, at the first byte on standard output; the parts by a second process that does the same and notes
the time after each, and the CPU time of all its threads: with one thread on idle cores the two are equal, and on busy
ones only the second means something. Beside them stands what `import torch, transformers` alone would take. Ways take
turns, the best counts.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

PROMPT = "Write a short note to a friend about the weather."
PARTS = """
import sys, time
started = float(sys.argv[1])
from acorn.__main__ import parser
options = parser().parse_args(["chat", "--model", sys.argv[2]])
import xllamacpp
from ondevice import cli
from ondevice.conversation import Conversation
from ondevice.terminal import Terminal
marks = [(started, 0.0), (time.time(), time.process_time())]
with cli.loaded(options, Terminal(quiet=True)) as llama:
    marks.append((time.time(), time.process_time()))
    first = []
    tell = lambda _: first.append((time.time(), time.process_time()))
    Conversation(llama).ask(sys.argv[3], 8, {"temperature": 0.7, "seed": 0}, tell)
marks.append(first[0])
for before, after in zip(marks, marks[1:]):
    print(after[0] - before[0], after[1] - before[1])
"""
VOCABULARY = 49_152


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="acorn-first-token-") as name:
        path = arguments.model or make_gguf(Path(name), arguments.type)
        parts: list[list[float]] = []
        whole: list[float] = []
        torch: list[tuple[float, float]] = []
        for _ in range(arguments.repeats + 1):  # the first turn brings the file and the libraries into memory
            whole.append(time_to_first_byte(path))
            parts.append(time_parts(path))
            torch.append(time_torch())
        best = [min(column) for column in zip(*parts[1:], strict=True)]
        print_table(path, whole, list(zip(best[::2], best[1::2], strict=True)), min(torch[1:]))


def time_to_first_byte(path: Path) -> float:
    """Seconds from starting the command to its first byte."""
    command = [sys.executable, "-m", "acorn", "chat", str(path), "--prompt", PROMPT, "--max-tokens", "8"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if not first.strip() and process.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode} before a character came")
    return seconds


def time_parts(path: Path) -> list[float]:
    """Seconds and CPU seconds for interpreter and imports, for loading the file, and from there to the first text."""
    command = [sys.executable, "-c", PARTS, repr(time.time()), str(path), PROMPT]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(part) for part in done.stdout.split()]


def time_torch() -> tuple[float, float]:
    """Seconds and CPU seconds of a process that imports torch and transformers."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, sum(after[2:4]) - sum(before[2:4])


def print_table(path: Path, whole: list[float], parts: list[tuple[float, float]], torch: tuple[float, float]) -> None:
    """The table for people, then one line of JSON."""
    size = path.stat().st_size / 1e6
    names = ("imports", "load", "first_text")
    print(f"{path.name}, {size:.0f} MB{'seconds':>16}{'CPU':>9}")
    for name, (seconds, cpu) in zip(names, parts, strict=True):
        print(f"  {name:<28}{seconds:>10.3f}{cpu:>9.3f}")
    print(f"  {'whole command':<28}{min(whole[1:]):>10.3f}{'':>9}   first time, nothing in memory: {whole[0]:.3f}")
    print(f"  {'import torch, transformers':<28}{torch[0]:>10.3f}{torch[1]:>9.3f}   not done here")
    figures = {"benchmark": "ondevice_first_token", "megabytes": round(size, 1), "seconds": round(min(whole[1:]), 3)}
    for name, (seconds, cpu) in zip(names, parts, strict=True):
        figures |= {f"{name}_seconds": round(seconds, 3), f"{name}_cpu": round(cpu, 3)}
    whole_cpu = sum(cpu for _, cpu in parts)
    print(json.dumps(figures | {"cpu": round(whole_cpu, 3), "torch_import_cpu": round(torch[1], 3)}))


def make_gguf(folder: Path, kind: str) -> Path:
    """A random Llama of SmolLM2-135M's shape, with a made-up vocabulary of its size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from export.gguf import write_gguf

    model = folder / "model"
    _tokenizer(model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype=torch.float16,
    )
    LlamaForCausalLM(config).half().save_pretrained(model)
    path = folder / f"random-{kind}.gguf"
    write_gguf(model, path, kind, {"name": "random"})
    return path


def _tokenizer(folder: Path) -> None:
    """Byte-level BPE whose merges are all pairs of letters, then pairs of those, until the vocabulary is full."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(product(string.ascii_lowercase, repeat=2))
    longer = product(["".join(pair) for pair in pairs], repeat=2)
    merges = [*pairs, *islice(longer, VOCABULARY - 1 - len(alphabet) - len(pairs))]
    tokens = ["<end>", *alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ends = {"eos_token": "<end>", "bos_token": "<end>", "pad_token": "<end>"}
    folder.mkdir()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **ends).save_pretrained(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a GGUF file of your own instead")
    parser.add_argument("--type", default="f16", help="of the random file (default: f16)")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
