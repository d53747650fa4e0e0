"""The export stages: a model folder as proven GGUF files, answers from them, and a folder to hand out."""

from __future__ import annotations

from acorn.stage import Stage
from export.config import AnswerConfig, GgufConfig, LlamaCppExecution, ReleaseConfig, ReleaseExecution

STAGES: tuple[Stage, ...] = (
    Stage(
        name="gguf",
        package="export",
        version=3,
        identity=GgufConfig,
        execution=LlamaCppExecution,
        inputs={"model": "model", "corpus?": "corpus"},
        output="gguf",
        run="export.convert:run",
        imports_torch=True,
        check="export.check:check_gguf",
        check_roles="export.check:check_gguf_inputs",
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
    Stage(
        name="release",
        package="export",
        version=2,
        identity=ReleaseConfig,
        execution=ReleaseExecution,
        inputs={"model": "model", "gguf": "gguf", "evaluation?": "evaluation"},
        output="release",
        run="export.release:run",
        imports_torch=True,
    ),
)
