"""The stages that bring a base model into the registry: trained here from tokens, or brought from elsewhere."""

from __future__ import annotations

from acorn.stage import Stage
from pretrain.config import HubModelConfig, HubModelExecution, PretrainConfig, PretrainExecution

STAGES: tuple[Stage, ...] = (
    Stage(
        name="pretrain",
        package="pretrain",
        version=1,
        identity=PretrainConfig,
        execution=PretrainExecution,
        output="model",
        inputs={"tokens": "tokens", "tokenizer": "tokenizer", "model?": "model"},
        more="tokens",
        run="pretrain.run:run",
        imports_torch=True,
        check="pretrain.check:check_pretrain",
        check_roles="pretrain.mixture:check_roles",
        cost="pretrain.estimate:cost",
        launcher="torchrun",
    ),
    Stage(
        name="hub_model",
        package="pretrain",
        version=2,
        identity=HubModelConfig,
        execution=HubModelExecution,
        output="model",
        run="pretrain.hub:run",
        imports_torch=True,
        check="pretrain.check:check_hub_model",
    ),
)
