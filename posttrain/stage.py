"""The stages `sft`, `dpo` and `prm`: a model and its training rows in, a model out."""

from __future__ import annotations

from acorn.stage import Stage
from posttrain.config import DpoConfig, PosttrainExecution, PrmConfig, PrmExecution, SftConfig

STAGES: tuple[Stage, ...] = (
    Stage(
        name="sft",
        package="posttrain",
        version=1,
        identity=SftConfig,
        execution=PosttrainExecution,
        output="model",
        run="posttrain.trl:sft",
        imports_torch=True,
        inputs={"model": "model", "chat": "chat"},
        check="posttrain.check:check_sft",
        launcher="accelerate",
    ),
    Stage(
        name="dpo",
        package="posttrain",
        version=1,
        identity=DpoConfig,
        execution=PosttrainExecution,
        output="model",
        run="posttrain.trl:dpo",
        imports_torch=True,
        inputs={"model": "model", "preferences": "preferences"},
        check="posttrain.check:check_dpo",
        launcher="accelerate",
    ),
    Stage(
        name="prm",
        package="posttrain",
        version=1,
        identity=PrmConfig,
        execution=PrmExecution,
        output="prm",
        run="posttrain.prm:prm",
        imports_torch=True,
        inputs={"model": "model", "steps": "steps"},
        check="posttrain.check:check_prm",
        launcher="accelerate",
    ),
)
