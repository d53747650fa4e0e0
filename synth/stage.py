"""What `synth` offers the spine: conversations and preference pairs by distilabel, step labels by the engine."""

from __future__ import annotations

from acorn.stage import Stage
from synth.config import (
    ChatDataConfig,
    ChatExecution,
    PairsExecution,
    PreferencePairsConfig,
    StepLabelsConfig,
    StepsExecution,
)

CHAT_DATA = Stage(
    name="chat_data",
    package="synth",
    version=2,
    identity=ChatDataConfig,
    execution=ChatExecution,
    inputs={"corpus": "corpus", "model?": "model"},
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
    inputs={"corpus": "corpus", "model": "model"},
    output="preferences",
    run="synth.preference_pairs:run",
    imports_torch=True,
    check="synth.check:check",
)

STEP_LABELS = Stage(
    name="step_labels",
    package="synth",
    version=1,
    identity=StepLabelsConfig,
    execution=StepsExecution,
    inputs={"corpus": "corpus", "model": "model"},
    output="steps",
    run="synth.step_labels:run",
    imports_torch=True,
    check="synth.check:check_steps",
)

STAGES: tuple[Stage, ...] = (CHAT_DATA, PREFERENCE_PAIRS, STEP_LABELS)
