"""The stages `chat_rows` and `preference_rows`: somebody's conversations or pairs as training rows.

Reads JSON lines, Parquet and data sets of the hub, one row at a time. A row that is no conversation goes to
`rejected.jsonl` with its reason; more of them than `max_rejected` allows is an error. Known spellings are read as they
are: `messages` of `{"role", "content"}`, ShareGPT's `{"from", "value"}`, and pairs whose `chosen` and `rejected` are
answers, or whole conversations that begin alike (UltraFeedback's binarised form).
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from acorn.stage import Job
from posttrain.config import ChatRowsConfig, PreferenceRowsConfig, RowsConfig
from posttrain.data import require_conversation

Row = dict[str, Any]
KEPT = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
"""Keys of a message that chat templates read."""
SPEAKERS = {"human": "user", "gpt": "assistant"}
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


def chat_rows(job: Job) -> dict[str, float]:
    """Write a `chat` artifact."""
    return run(job, chat_row)


def preference_rows(job: Job) -> dict[str, float]:
    """Write a `preferences` artifact."""
    return run(job, preference_row)


def run(job: Job, convert: Callable[[Any, Row], Row]) -> dict[str, float]:
    """Convert every row. Raises ValueError where too many are rejected, or none is left."""
    config: RowsConfig = job.config
    reasons: Counter[str] = Counter()
    kept = 0
    with (
        (job.out / "train.jsonl").open("w", encoding="utf-8") as train,
        (job.out / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
    ):
        for number, row in enumerate(islice(read(config), config.limit)):
            try:
                line = {"id": f"row-{number}", **convert(config, row), "source": config.label}
                kept += 1
                train.write(json.dumps(line, ensure_ascii=False) + "\n")
            except ValueError as error:
                reasons[str(error).split(":")[0]] += 1
                rejected.write(
                    json.dumps({"id": f"row-{number}", "reason": str(error), "row": row}, default=str) + "\n"
                )
    seen = kept + reasons.total()
    if reasons.total() > config.max_rejected * seen or not kept:
        found = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
        raise ValueError(
            f"{config.path}: {reasons.total()} of {seen} rows are no {convert.__name__.replace('_row', '')} rows "
            f"({found or 'there are none'}); allowed: {config.max_rejected:.1%} (`max_rejected`)"
        )
    stats = {"rows": seen, "kept": kept, "rejected": dict(reasons)}
    (job.out / "stats.json").write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    return {"rows/rows": seen, "rows/kept": kept, "rows/rejected": reasons.total()}


def chat_row(config: ChatRowsConfig, row: Row) -> Row:
    """One conversation that has an assistant's turn. Raises ValueError for anything else."""
    messages = conversation("messages", column(row, config.messages))
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError("no assistant's turn, so nothing to train")
    return {"messages": messages, **_variables(row)}


def preference_row(config: PreferenceRowsConfig, row: Row) -> Row:
    """One pair. Raises ValueError for a pair that is none, or whose sides answer different questions."""
    sides = [conversation(name, column(row, name), "assistant") for name in (config.chosen, config.rejected)]
    alike = 0
    for one, other in zip(*sides, strict=False):
        if one != other:
            break
        alike += 1
    prompt, chosen, rejected = sides[0][:alike], sides[0][alike:], sides[1][alike:]
    if not prompt:
        prompt = conversation("prompt", column(row, config.prompt), "user")
    if not chosen or not rejected:
        raise ValueError("chosen and rejected are the same, or one is the beginning of the other")
    for name, side in ((config.chosen, chosen), (config.rejected, rejected)):
        if side[0]["role"] != "assistant":
            raise ValueError(f"{name} parts from the other side at a turn of the {side[0]['role']}, not at an answer")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_variables(row)}


def column(row: Row, name: str) -> Any:
    """A column's value. Raises ValueError, with the columns there are, where it is missing or empty."""
    if not row.get(name):
        raise ValueError(f"no {name}: the row has {', '.join(sorted(row)) or 'no columns'}")
    return row[name]


def conversation(name: str, value: Any, speaker: str | None = None) -> list[Row]:
    """Messages of a column; a text is one of `speaker`. Raises ValueError for what is no conversation."""
    if isinstance(value, str) and speaker is not None:
        return [{"role": speaker, "content": value}]
    if isinstance(value, list):
        value = [_message(message) if isinstance(message, dict) else message for message in value]
    require_conversation(name, value)
    return list(value)


def _message(message: Row) -> Row:
    if "from" in message and "value" in message:
        message = {"role": SPEAKERS.get(message["from"], message["from"]), "content": message["value"]}
    return {name: message[name] for name in KEPT if message.get(name) is not None}


def _variables(row: Row) -> Row:
    """A row's own tools and template variables, without what Parquet fills in as null."""
    given = row.get("chat_template_kwargs") or {}
    if not isinstance(given, dict):
        raise ValueError("chat_template_kwargs is no mapping")
    known = {name: value for name, value in given.items() if value not in (None, [], "")}
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {**tools, **({"chat_template_kwargs": known} if known else {})}


def read(config: RowsConfig) -> Iterator[Row]:
    """Rows of the files, or of the hub's data set, in their order."""
    local = Path(config.path).expanduser()
    if not local.exists():
        yield from _hub(config)
        return
    for file in _files(local, config.split):
        yield from _parquet(file) if file.suffix == ".parquet" else _lines(file)


def _files(path: Path, split: str) -> list[Path]:
    """`path` itself, or the folder's files of one split. Raises ValueError, with what is there, without one."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.name.endswith(ENDINGS))
    # `train.jsonl` and `train-00000-of-00002.parquet`, not `train_sft-00000-of-00001.parquet`, which is another split.
    named = re.compile(rf"{re.escape(split)}([-_.]?\d[^.]*)?\.")
    own = [file for file in found if named.match(file.name) or split in file.relative_to(path).parts[:-1]]
    if not own:
        there = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        raise ValueError(f"{path} has no split `{split}`: files of rows there: {there}")
    return own


def _lines(file: Path) -> Iterator[Row]:
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            yield row if isinstance(row, dict) else {"line": line.rstrip("\n")[:200]}


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1000):
        yield from batch.to_pylist()


def _hub(config: RowsConfig) -> Iterator[Row]:
    from datasets import load_dataset

    settings = {"name": config.name, "split": config.split, "revision": config.revision}
    try:
        yield from load_dataset(config.path, streaming=True, **settings)
    except ValueError as error:  # of a configuration or a split that does not exist
        raise ValueError(f"{config.path} ({config.name or 'default'}, split {config.split}): {error}") from error
