"""The export stages: a model folder as proven GGUF files, and answers from them."""

from __future__ import annotations

from acorn.stage import Stage
from export.config import AnswerConfig, GgufConfig, LlamaCppExecution

STAGES: tuple[Stage, ...] = (
    Stage(
        name="gguf",
        package="export",
        version=2,
        identity=GgufConfig,
        execution=LlamaCppExecution,
        inputs={"model": "model", "corpus?": "corpus"},
        output="gguf",
        run="export.convert:run",
        imports_torch=True,
    ),
    Stage(
        name="answer",
        package="export",
        version=1,
        identity=AnswerConfig,
        execution=LlamaCppExecution,
        inputs={"gguf": "gguf"},
        output="transcript",
        run="export.answer:run",
        check="export.check:check_answer",
    ),
)
