"""What `synth` offers the spine: conversations, pairs and texts by distilabel, step labels by the engine."""

from __future__ import annotations

from acorn.stage import TEST_KINDS, Identity, Stage
from synth.config import (
    ChatDataConfig,
    ChatExecution,
    PairsExecution,
    PreferencePairsConfig,
    StepLabelsConfig,
    StepsExecution,
)
from synth.making_config import (
    ConstraintsConfig,
    MagpieConfig,
    MakingExecution,
    RewriteConfig,
    SummariseConfig,
    VerifiedConfig,
)

LLM_ROLES = {"model?": "model", "gguf?": "gguf"}
FILTER_ROLES = {"judge?": "model", "reward?": "model", "embedder?": "model"}

CHAT_DATA = Stage(
    name="chat_data",
    package="synth",
    version=2,
    identity=ChatDataConfig,
    execution=ChatExecution,
    inputs={"corpus": "corpus", **LLM_ROLES},
    more=TEST_KINDS,
    output="chat",
    run="synth.chat_data:run",
    imports_torch=True,
    check="synth.check:check",
)

PREFERENCE_PAIRS = Stage(
    name="preference_pairs",
    package="synth",
    version=2,
    identity=PreferencePairsConfig,
    execution=PairsExecution,
    inputs={"corpus?": "corpus", "prompts?": "chat", "model": "model", "judge?": "model", "reward?": "model"},
    more=TEST_KINDS,
    output="preferences",
    run="synth.preference_pairs:run",
    imports_torch=True,
    check="synth.check:check",
    check_roles="synth.roles:check_pairs",
)

STEP_LABELS = Stage(
    name="step_labels",
    package="synth",
    version=1,
    identity=StepLabelsConfig,
    execution=StepsExecution,
    inputs={"corpus": "corpus", "model": "model"},
    more=TEST_KINDS,
    output="steps",
    run="synth.step_labels:run",
    imports_torch=True,
    check="synth.check:check_steps",
)


def _making(name: str, identity: type[Identity], run: str, inputs: dict[str, str]) -> Stage:
    """A stage that lets an LLM write conversations; further inputs are the evaluation sets kept out of them."""
    return Stage(
        name=name,
        package="synth",
        version=2,
        identity=identity,
        execution=MakingExecution,
        inputs={**inputs, **LLM_ROLES, **FILTER_ROLES},
        more=TEST_KINDS,
        output="chat",
        run=run,
        imports_torch=True,
        check="synth.check:check_making",
        check_roles="synth.roles:check_making",
    )


MAGPIE = _making("magpie", MagpieConfig, "synth.magpie:run", {})
CONSTRAINTS = _making("constraints", ConstraintsConfig, "synth.constraints:run", {"prompts?": "chat"})
REWRITE = _making("rewrite", RewriteConfig, "synth.texts:rewrite", {"corpus": "corpus"})
SUMMARISE = _making("summarise", SummariseConfig, "synth.texts:summarise", {"corpus": "corpus"})
VERIFIED = _making("verified", VerifiedConfig, "synth.verified:run", {"corpus?": "corpus"})

STAGES: tuple[Stage, ...] = (
    CHAT_DATA,
    PREFERENCE_PAIRS,
    STEP_LABELS,
    MAGPIE,
    CONSTRAINTS,
    REWRITE,
    SUMMARISE,
    VERIFIED,
)
