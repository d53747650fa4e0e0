"""What the eval package offers to recipes: plain data, no heavy import."""

from __future__ import annotations

from acorn.stage import GATE, Execution, Stage
from eval.config import EvaluateConfig, EvaluateExecution, GateConfig, GateExecution, TestSetsConfig

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

TEST_SETS = Stage(
    name="test_sets",
    package="eval",
    version=1,
    identity=TestSetsConfig,
    execution=Execution,
    output="test_sets",
    run="eval.test_sets:run",
    imports_torch=True,
    check="eval.check:check_test_sets",
)

STAGES: tuple[Stage, ...] = (EVALUATE, PASS, TEST_SETS)
