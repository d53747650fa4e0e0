"""What `synth` offers the spine: conversations and preference pairs, made by distilabel pipelines."""

from __future__ import annotations

from acorn.stage import Stage
from synth.config import ChatDataConfig, ChatExecution, PairsExecution, PreferencePairsConfig

CHAT_DATA = Stage(
    name="chat_data",
    package="synth",
    version=1,
    identity=ChatDataConfig,
    execution=ChatExecution,
    inputs={"corpus": "corpus", "model?": "model"},
    output="chat",
    run="synth.chat_data:run",
    warm=("synth.distilabel", "wandb"),
    check="synth.check:check",
)

PREFERENCE_PAIRS = Stage(
    name="preference_pairs",
    package="synth",
    version=1,
    identity=PreferencePairsConfig,
    execution=PairsExecution,
    inputs={"corpus": "corpus", "model": "model"},
    output="preferences",
    run="synth.preference_pairs:run",
    warm=("synth.distilabel", "wandb"),
    check="synth.check:check",
)

STAGES: tuple[Stage, ...] = (CHAT_DATA, PREFERENCE_PAIRS)
