"""What the eval package offers to recipes: plain data, no heavy import."""

from __future__ import annotations

from acorn.stage import GATE, Stage
from eval.config import EvaluateConfig, EvaluateExecution, GateConfig, GateExecution

EVALUATE = Stage(
    name="evaluate",
    package="eval",
    version=2,
    identity=EvaluateConfig,
    execution=EvaluateExecution,
    inputs={"corpus?": "corpus"},
    more=("model", "search"),
    output="evaluation",
    run="eval.evaluate:run",
    imports_torch=True,
    check="eval.check:check",
    diff="eval.flips:diff",
    launcher="torchrun",
)

PASS = Stage(
    name="gate",
    package="eval",
    version=1,
    identity=GateConfig,
    execution=GateExecution,
    inputs={"evaluation": "evaluation", "model": "model", "previous?": "evaluation"},
    output=GATE,
    run="eval.gate:run",
    check_roles="eval.gate:check_roles",
)

STAGES: tuple[Stage, ...] = (EVALUATE, PASS)
