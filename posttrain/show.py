"""`acorn data show STEP --labels`: the tokens that an `sft` or `dpo` step would train, as its own trainer holds them.

The rows go through TRL's preparation around a stand-in of a few thousand parameters, so that no weights are read; then
through the guards that the step itself asks before it trains. Shown is text: a token that is part of a character is
shown with the tokens that complete it.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from acorn.stage import Job, Stage
from posttrain.config import TrlConfig
from posttrain.data import data_roles
from posttrain.guards import IGNORED, guard_chat, guard_pairs
from posttrain.training import cleared_state
from posttrain.trl import build_dpo, build_sft, guarded

TRAINED, UNTRAINED, REFUSED = "green", "dim", "red"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
OPEN, CLOSE = "⟦", "⟧"
"""Around what is trained, where there are no colours."""


def show_labels(stage: Stage, config: TrlConfig, inputs: Mapping[str, Path], rows: int, console: Console) -> bool:
    """Print the first `rows` rows of each data input; whether the step's guards let them pass."""
    sound = True
    for role in data_roles(inputs):
        kept = {name: folder for name, folder in inputs.items() if name == role or name not in data_roles(inputs)}
        with tempfile.TemporaryDirectory() as folder, cleared_state():
            job = _job(stage, config, kept, rows, Path(folder))
            build, guard = (build_sft, guard_chat) if stage.name == "sft" else (build_dpo, guard_pairs)
            try:
                trainer, tokenizer = build(job)
                for number, text in enumerate(_rows(trainer.train_dataset, tokenizer, not console.color_system)):
                    console.print(Text(f"{role}, row {number}: ", "bold").append(text), soft_wrap=True)
                guarded(job, trainer, tokenizer, guard)
            except (ValueError, RuntimeError) as error:  # TRL's own guard of untrained rows is a RuntimeError
                console.print(Text(f"{role}: {error}", "bold red"), soft_wrap=True)
                sound = False
    return sound


def _job(stage: Stage, config: TrlConfig, inputs: dict[str, Path], rows: int, folder: Path) -> Job:
    """The step on its first rows, around a stand-in model, on the CPU."""
    own = {"model_init_kwargs", "bf16", "fp16", "tf32", "use_liger_kernel"}
    training = {name: value for name, value in config.training.items() if name not in own}
    changed = {"training": training, "max_rows": rows, "weights": {}, "lora": None, "quantization": None}
    changed |= {"global_batch_size": 1, "max_truncated": 1.0}
    return Job(
        recipe="",
        step=stage.name,
        stage=stage.name,
        config=config.model_copy(update=changed),
        execution=stage.execution.model_validate({"device": "cpu"}),
        inputs={**inputs, "model": _stand_in(inputs["model"], folder / "model")},
        digests={},
        out=folder / "out",
        scratch=folder,
        group="",
    )


def _stand_in(model: Path, folder: Path) -> Path:
    """A folder with the files of `model`, but for its weights: those are of a Llama 8 wide."""
    real = AutoTokenizer.from_pretrained(model)
    config = LlamaConfig(
        vocab_size=len(real),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=json.loads((model / "config.json").read_text()).get("max_position_embeddings", 1024),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in model.iterdir():
        if file.is_file() and not (folder / file.name).exists() and file.suffix not in (".safetensors", ".bin"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _rows(prepared: Any, tokenizer: Any, marked: bool) -> Iterator[Text]:
    """Each prepared document as text; a packed row has several."""
    for row in prepared:
        if "prompt_ids" in row:
            yield _pair(row, tokenizer, marked)
            continue
        ends = [0, *itertools.accumulate(row.get("seq_lengths") or [len(row["input_ids"])])]
        for begin, end in itertools.pairwise(ends):
            ids, labels = row["input_ids"][begin:end], row["labels"][begin:end]
            count = sum(label != IGNORED for label in labels)
            yield Text(f"{len(ids)} tokens, {count} trained\n").append(coloured(ids, labels, tokenizer, marked))


def _pair(row: dict[str, Any], tokenizer: Any, marked: bool) -> Text:
    untrained = [IGNORED] * len(row["prompt_ids"])
    text = Text(f"{len(row['prompt_ids'])} tokens of prompt\n")
    text.append(coloured(row["prompt_ids"], untrained, tokenizer, marked))
    for name, style in (("chosen", TRAINED), ("rejected", REFUSED)):
        ids = row[f"{name}_ids"]
        text.append(f"\n{name}, {len(ids)} tokens\n").append(coloured(ids, ids, tokenizer, marked, style))
    return text


def coloured(ids: Sequence[int], labels: Sequence[int], tokenizer: Any, marked: bool, style: str = TRAINED) -> Text:
    """The text of `ids`, trained tokens in `style`, special ones among them on its ground; `marked`: in brackets."""
    text, inside = Text(), False
    for piece, trained, special in pieces(ids, labels, tokenizer):
        if marked and trained != inside:
            text.append(OPEN if trained else CLOSE)
        inside = trained
        text.append(
            _CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece),
            (f"black on {style}" if special else style) if trained else UNTRAINED,
        )
    if marked and inside:
        text.append(CLOSE)
    return text


def pieces(ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> Iterator[tuple[str, bool, bool]]:
    """(text, whether it is trained, whether it is a special token) of the shortest runs of tokens that are text."""
    special = {number for number, added in tokenizer.added_tokens_decoder.items() if added.special}
    run: list[int] = []
    for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
        run.append(token)
        trained = label != IGNORED
        text = tokenizer.decode(run, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\N{REPLACEMENT CHARACTER}") or len(run) > 4  # no character has more bytes
        if whole or at == len(ids) - 1 or (labels[at + 1] != IGNORED) != trained:
            yield text, trained, token in special
            run = []
