"""The `answer` stage: asks an exported GGUF through llama.cpp, with the chat template that is in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acorn.stage import Job
from export.config import AnswerConfig, LlamaCppExecution


def run(job: Job) -> dict[str, float]:
    """Answer every prompt, print it and write `transcript.jsonl`; returns the share that ended by itself.

    Raises LlamaError if llama.cpp refuses the file or a request, ValueError if the export lacks the asked type.
    """
    from export.llamacpp import LlamaCpp

    config: AnswerConfig = job.config
    execution: LlamaCppExecution = job.execution
    path = find_gguf(job.inputs["gguf"], config.type)
    options = {"max_tokens": config.max_tokens, "seed": config.seed, **config.sampling}
    rows: list[dict[str, Any]] = []
    generated, seconds = 0, 0.0
    with (
        job.track() as tracker,
        LlamaCpp(
            path,
            context=config.context or 0,
            threads=execution.threads,
            gpu_layers=0 if execution.device == "cpu" else -1,
            verbose=execution.verbose,
        ) as llama,
    ):
        for prompt in config.prompts:
            messages = _messages(prompt)
            reply = llama.chat(messages, options)
            rows.append(_row(messages, reply))
            _print(rows[-1])
            generated += reply["usage"]["completion_tokens"]
            seconds += reply["timings"]["predicted_ms"] / 1000
        metrics = {
            "answer/stopped": sum(row["finish_reason"] == "stop" for row in rows) / len(rows),
            "answer/tokens": float(generated),
        }
        tracker.log({**metrics, "answer/tokens_per_second": generated / max(seconds, 1e-9)})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (job.out / "transcript.jsonl").write_text("".join(lines), encoding="utf-8")
    return metrics


def find_gguf(export: Path, kind: str | None) -> Path:
    """File of type `kind` in a gguf artifact (default: its first). Raises ValueError naming the types there are."""
    types = json.loads((export / "export.json").read_text(encoding="utf-8"))["types"]
    chosen = kind or next(iter(types))
    if chosen not in types:
        raise ValueError(
            f"the export holds no {chosen!r}; it holds {', '.join(types)}: add it to the gguf step's types"
        )
    return export / str(types[chosen]["file"])


def _messages(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [message.model_dump() for message in prompt]


def _row(messages: list[dict[str, str]], reply: dict[str, Any]) -> dict[str, Any]:
    choice, usage = reply["choices"][0], reply["usage"]
    answer = {"role": "assistant", "content": choice["message"]["content"] or ""}
    return {
        "messages": [*messages, answer],
        "finish_reason": choice["finish_reason"],
        "usage": {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
    }


def _print(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for message in row["messages"]:
        style = "green" if message["role"] == "assistant" else "cyan"
        console.print(Text(f"{message['role']}: ", style=f"bold {style}") + Text(message["content"]))
    if row["finish_reason"] != "stop":
        console.print(Text(f"(cut off: finish_reason is {row['finish_reason']}; raise max_tokens)", style="yellow"))
