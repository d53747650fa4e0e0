"""What the eval package offers to recipes: plain data, no heavy import."""

from __future__ import annotations

from acorn.stage import Stage
from eval.config import EvaluateConfig, EvaluateExecution

EVALUATE = Stage(
    name="evaluate",
    package="eval",
    version=1,
    identity=EvaluateConfig,
    execution=EvaluateExecution,
    inputs={"corpus?": "corpus"},
    more="model",
    output="evaluation",
    run="eval.evaluate:run",
    imports_torch=True,
    check="eval.check:check",
)

STAGES: tuple[Stage, ...] = (EVALUATE,)
