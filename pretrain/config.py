"""Config of the stages `pretrain` and `hub_model`.

Dict fields hold nanotron's own options under nanotron's own names (nanotron.config: LlamaConfig, OptimizerArgs,
LRSchedulerArgs, ParallelismArgs). `check.py` puts them before those classes; what is listed in `FILLED_IN` comes from
another field or from an input, and is refused inside the dict.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, field_validator, model_validator

from acorn.stage import Execution, Identity, Launched, Source
from pretrain.scaling import DERIVES, Dial, turn

TOKENS = "tokens"
"""Role of the token set that is always there: its validation.bin gives the validation loss."""
OTHER_INPUTS = ("tokenizer", "model")
"""Roles of inputs that are no token sets."""


class DataStage(BaseModel):
    """From one step on, which token sets are read and in what shares; names as in nanotron's own `data_stages`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    start_training_step: int = Field(gt=0)
    """The first step of the stage; the run's first step is 1."""
    data: dict[str, float] = Field(min_length=1)
    """Weights over tokens by input role, whatever they add up to."""

    @field_validator("data")
    @classmethod
    def _positive(cls, data: dict[str, float]) -> dict[str, float]:
        for role, weight in data.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"weight {weight:g} of '{role}' is not above 0: raise it, or leave '{role}' out")
        return data


class SkipSpikes(BaseModel):
    """When an update is left out (`pretrain.spikes`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma: float = Field(default=6.0, gt=0)
    """Standard deviations above the mean of the window."""
    window: int = Field(default=128, ge=4)
    """Steps; nothing is left out before half of them have been seen."""


class PretrainConfig(Identity):
    """What decides the weights."""

    model: dict[str, Any]
    """nanotron's LlamaConfig (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, ...) and
    `rope_theta`. With an input `model` it must say what that model is."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; give this or `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """Budget in tokens, rounded up to whole steps."""
    sequence_length: int = Field(gt=0)
    global_batch_size: int = Field(gt=0)
    """Sequences per optimizer step, over all processes."""
    learning_rate_scheduler: dict[str, Any]
    """nanotron's LRSchedulerArgs: learning_rate, lr_warmup_steps, lr_decay_style, min_decay_lr, ...

    `lr_decay_style` may also be `1-sqrt` (see `compat.decay`)."""
    data_stages: list[DataStage] = Field(default_factory=list, exclude_if=lambda stages: not stages)
    """Mixtures of several token sets, one after the other. None: the input `tokens` alone. Left out of the key when
    empty, so that keys from before it existed stand."""
    optimizer: dict[str, Any] = Field(default_factory=dict)
    """nanotron's OptimizerArgs; what is not given is taken from OPTIMIZER_DEFAULTS."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations. In bfloat16 a float32 copy of the weights is trained."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights; projections back to the residual get init_std / sqrt(2 * layers)."""
    seed: int = 42
    """Of the initial weights and of the order of the data."""
    skip_spikes: SkipSpikes | None = Field(default=None, exclude_if=lambda given: given is None)
    """Leave out updates whose loss or gradient norm spikes; `true` for 6 sigma over 128 steps. Default: off, and left
    out of the key."""
    dial: Dial | None = Field(default=None, exclude=True)
    """Derives what is not given (`pretrain.scaling`). Enters the key as what it derived, never itself."""
    dial_derives: ClassVar[tuple[str, ...]] = DERIVES

    @model_validator(mode="before")
    @classmethod
    def _plain_switch(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("skip_spikes"), bool):
            return {**given, "skip_spikes": {} if given["skip_spikes"] else None}
        return given

    @model_validator(mode="wrap")
    @classmethod
    def _turn_the_dial(cls, data: Any, handler: ModelWrapValidatorHandler[PretrainConfig]) -> PretrainConfig:
        if not isinstance(data, dict) or data.get("dial") is None:
            return handler(data)
        filled, derived = turn(data)
        config = handler(filled)
        config._derived = derived
        return config

    @model_validator(mode="after")
    def _one_budget(self) -> PretrainConfig:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError(f"give exactly one of steps ({self.steps}) and tokens ({self.tokens})")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.sequence_length

    @property
    def train_steps(self) -> int:
        return self.steps if self.steps is not None else math.ceil((self.tokens or 0) / self.tokens_per_step)


class PretrainExecution(Launched):
    """How the work is spread; the weights agree to rounding."""

    parallelism: dict[str, Any] = Field(default_factory=dict)
    """nanotron's ParallelismArgs: tp, pp, tp_mode, pp_engine, ...; dp is processes / (tp * pp)."""
    zero_stage: Literal[0, 1] = 0
    """1 shards the optimizer state over the data-parallel processes."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences per forward pass and process; default: the largest that divides and holds MICRO_BATCH_TOKENS."""
    recompute: bool = False
    """Keep each layer's input alone and compute the layer again in the backward pass: less memory, more time."""
    checkpoint_interval: int = Field(default=500, gt=0)
    """Steps between checkpoints in scratch; a killed run goes on from the newest."""
    grace_seconds: float = Field(default=60.0, ge=0)
    """After SIGTERM, for the rest of the step and its checkpoint; Ctrl-C gives 5 s whatever stands here."""
    log_interval: int = Field(default=10, gt=0)
    validation_interval: int | None = Field(default=None, gt=0)
    """Steps between validation passes; one at the end is always made."""


OPTIMIZER_DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.1,
    "clip_grad": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "torch_adam_is_fused": True,
}
MICRO_BATCH_TOKENS = 4096

FILLED_IN: dict[str, dict[str, str]] = {
    "model": {
        "vocab_size": "it comes from the tokenizer",
        "bos_token_id": "it comes from the tokenizer",
        "eos_token_id": "it comes from the tokenizer",
        "pad_token_id": "it comes from the tokenizer",
        "initializer_range": "nanotron ignores it: set init_std",
        "is_llama_config": "it is always true",
        "pretraining_tp": "nanotron ignores it",
        "use_cache": "nanotron ignores it",
    },
    "optimizer": {
        "zero_stage": "set execution.zero_stage: it does not change the result",
        "learning_rate_scheduler": "set the step's own learning_rate_scheduler",
    },
    "learning_rate_scheduler": {},
    "parallelism": {"dp": "it follows from processes / (tp * pp)"},
}


class HubModelConfig(Identity):
    """A causal language model of the Llama type, with its tokenizer, that was made elsewhere."""

    path: Source
    """A local folder or GGUF file, or on the hub a model (`HuggingFaceTB/SmolLM2-135M`) or a GGUF of one
    (`owner/name/FILE.gguf`)."""
    revision: str | None = None
    """Commit or tag on the hub; required there, so that the key names one set of weights."""
    chat_template: Source | None = Field(default=None, exclude_if=lambda given: given is None)
    """A Jinja file in place of the model's own template: one that says the same with `{% generation %}` markers, where
    the model is to be fine-tuned."""


class HubModelExecution(Execution):
    """Nothing: the files are copied, or a GGUF unpacked."""
