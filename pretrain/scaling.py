"""One dial: shape, batch, learning rate and budget of a pre-training run from its depth, or from its FLOPs.

Every rule is published, and is given with what it derived (`acorn plan`). What the recipe gives itself wins, and what
follows from it is derived from the given value. Plain arithmetic, no torch.

The laws of batch and learning rate are DeepSeek LLM's, which count compute as that paper does: 6 FLOPs per weight of
the layers and token, and attention in full; embedding and head do not count, so the vocabulary need not be known. They
were fitted between 1e17 and 2e19 FLOPs on a multi-step schedule; outside they are an extrapolation. A learning rate
per layer as muP has it is not among the rules: nanotron 0.4 has one for all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, model_validator

from acorn.stage import Derived, Identity

CHINCHILLA = 20.0
LEAST_STEPS = 20
WARMUP_STEPS = 2000
DECAY_SHARE = 5
"""The last fifth of the steps."""


class Dial(Identity):
    """How large a run is to be; give `depth` or `flops`."""

    RANGES: ClassVar[dict[str, tuple[float, float, str]]] = {
        "depth": (1, 256, "the deepest published language models have some 130 layers"),
        "flops": (1e9, 1e27, "1e9 is less than a second of one core, 1e27 more than anybody has spent"),
        "aspect_ratio": (4, 1024, "published models have 19 (SmolLM2-135M) to 128 (GPT-3)"),
        "head_dim": (2, 512, "published models have 64 to 256"),
        "tokens_per_parameter": (0.1, 100_000, "20 is compute-optimal after Chinchilla; SmolLM2-135M had 15,000"),
    }

    depth: int | None = None
    """Layers."""
    flops: float | None = None
    """Compute of the run; the depth is the one whose own budget comes nearest, the tokens use up the rest."""
    aspect_ratio: int = 64
    """Width per layer: nanochat's constant ratio. Small models do well with less: SmolLM2-135M has 19."""
    head_dim: int = 64
    """Width of an attention head; the model's width is rounded up to a multiple."""
    tokens_per_parameter: float = CHINCHILLA
    """Tokens per weight of the layers. Hoffmann et al. 2022 (arXiv:2203.15556) find 20."""

    @model_validator(mode="after")
    def _sensible(self) -> Dial:
        if (self.depth is None) == (self.flops is None):
            raise ValueError(f"dial: give exactly one of depth ({self.depth}) and flops ({self.flops})")
        for name, (low, high, known) in self.RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"dial.{name} is {value:g}: set it between {low:g} and {high:g}; {known}")
        if self.head_dim % 2:
            raise ValueError(f"dial.head_dim is {self.head_dim}: rotary positions need an even one, such as 64")
        return self


class _Dialled(BaseModel):
    """For the sake of its errors, which then name `dial` and the field in it."""

    dial: Dial


DERIVES = (
    "model.num_hidden_layers",
    "model.hidden_size",
    "model.num_attention_heads",
    "model.num_key_value_heads",
    "model.intermediate_size",
    "init_std",
    "tokens",
    "steps",
    "global_batch_size",
    "learning_rate_scheduler",
)
"""What a dial turned on the command line (`--depth`) takes from a recipe that has none, to derive it anew."""


def turn(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Derived, ...]]:
    """`config` of a pretrain step that has a `dial`, with every field that the dial derives, and the list of those.

    Raises ValueError, naming the value and the remedy, for a size that no run could have.
    """
    dial = _Dialled.model_validate(config).dial
    sheet = _Sheet(config)
    length = sheet.given("sequence_length")
    if length is None:  # the config's own class says that it is missing
        return sheet.config, ()
    depth = dial.depth if dial.depth is not None else depth_for(dial, int(length))
    weights, width = _shape(sheet, dial, depth)
    per_token = layer_flops_per_token(weights, depth, width, int(length))
    tokens = _tokens(sheet, dial, weights, per_token)
    compute = tokens * per_token
    sequences = _batch(sheet, compute, int(length))
    steps = _steps(sheet, dial, tokens, sequences * int(length))
    _schedule(sheet, compute, sequences * int(length), steps)
    return sheet.config, tuple(sheet.derived)


def width_of(depth: int, dial: Dial) -> int:
    """Width of a model `depth` layers deep: a whole number of heads."""
    return math.ceil(depth * dial.aspect_ratio / dial.head_dim) * dial.head_dim


def feed_forward(width: int, multiple: int) -> int:
    """Inner width of a gated feed-forward layer with as many weights as an ungated one of 4 times the width."""
    return math.ceil(8 * width / 3 / multiple) * multiple


def layer_weights(depth: int, width: int, heads: int, key_value_heads: int, inner: int) -> int:
    """Weights of the matrices of all layers; embedding, head and norms do not count."""
    return depth * (2 * width * width + 2 * width * (width // heads * key_value_heads) + 3 * width * inner)


def layer_flops_per_token(weights: int, depth: int, width: int, sequence_length: int) -> int:
    """Forward and backward, without embedding and head (DeepSeek LLM, section 3.2: M); `estimate.flops_per_token` has
    the head, too."""
    return 6 * weights + 12 * depth * width * sequence_length


def depth_for(dial: Dial, sequence_length: int) -> int:
    """The depth whose own budget comes nearest to `dial.flops`, by ratio. Raises ValueError if none comes near."""
    asked = dial.flops or 0.0
    low, high = (_budget(depth, dial, sequence_length) for depth in (1, int(dial.RANGES["depth"][1])))
    if not low / 2 <= asked <= high * 2:
        raise ValueError(
            f"dial.flops is {asked:g}, but depths from 1 to 256 use {low:.2g} to {high:.2g} FLOPs at aspect_ratio "
            f"{dial.aspect_ratio} and {dial.tokens_per_parameter:g} tokens per parameter: change flops, or aspect_ratio"
        )
    depths = range(1, int(dial.RANGES["depth"][1]) + 1)
    return min(depths, key=lambda depth: abs(math.log(_budget(depth, dial, sequence_length) / asked)))


def optimal_batch(compute: float) -> float:
    """Tokens per step: DeepSeek LLM (arXiv:2401.02954), section 3.1."""
    return 0.2920 * math.pow(compute, 0.3271)


def optimal_learning_rate(compute: float) -> float:
    """Peak learning rate at that batch: DeepSeek LLM (arXiv:2401.02954), section 3.1."""
    return 0.3118 * math.pow(compute, -0.1250)


def _budget(depth: int, dial: Dial, sequence_length: int) -> float:
    width = width_of(depth, dial)
    heads = width // dial.head_dim
    weights = layer_weights(depth, width, heads, heads, feed_forward(width, dial.head_dim))
    return dial.tokens_per_parameter * weights * layer_flops_per_token(weights, depth, width, sequence_length)


def _shape(sheet: _Sheet, dial: Dial, depth: int) -> tuple[int, int]:
    """Settle the model's sizes; weights of its layers, and its width."""
    by = "dial.depth" if dial.depth is not None else f"the depth whose own budget is nearest to {dial.flops:.3g} FLOPs"
    layers = sheet.size("model.num_hidden_layers", depth, by)
    if layers != depth:
        raise ValueError(
            f"model.num_hidden_layers is {layers} and the dial's depth {depth}: leave num_hidden_layers out, or turn "
            f"the dial with --depth, which drops the sizes that the recipe gives"
        )
    why = f"{dial.aspect_ratio} x depth, in heads of {dial.head_dim}: a constant width per layer, as nanochat"
    width = sheet.size("model.hidden_size", width_of(depth, dial), why)
    why = f"one per {dial.head_dim} of width"
    heads = sheet.size("model.num_attention_heads", max(1, width // dial.head_dim), why)
    shared = sheet.size("model.num_key_value_heads", heads, "as many as heads: no sharing")
    why = f"8/3 of the width, up to a multiple of {dial.head_dim}: SwiGLU at equal weights (arXiv:2002.05202)"
    inner = sheet.size("model.intermediate_size", feed_forward(width, dial.head_dim), why)
    why = "1 / sqrt(width), as SmolLM2's runs have it"
    sheet.settle("init_std", _rounded(width**-0.5), why)
    return layer_weights(depth, width, heads, shared, inner), width


def _tokens(sheet: _Sheet, dial: Dial, weights: int, per_token: int) -> float:
    """Tokens of the run: given, or by compute, or by the ratio to the weights."""
    steps, tokens = sheet.given("steps"), sheet.given("tokens")
    if steps is not None:
        batch, length = sheet.given("global_batch_size"), sheet.given("sequence_length")
        if batch is None or length is None:
            raise ValueError(
                f"steps is {steps} and the dial derives the batch from the tokens: give tokens instead of steps, or "
                "global_batch_size as well"
            )
        return float(steps * batch * length)
    if tokens is not None:
        return float(tokens)
    if dial.flops is not None:
        sheet.why_steps = f"{dial.flops:.3g} FLOPs at {per_token:.3g} per token"
        return dial.flops / per_token
    ratio = dial.tokens_per_parameter
    source = " (Hoffmann et al. 2022, arXiv:2203.15556)" if ratio == CHINCHILLA else ""
    sheet.why_steps = f"{ratio:g} tokens for each of {weights:,} weights of the layers{source}"
    return ratio * weights


def _batch(sheet: _Sheet, compute: float, length: int) -> int:
    best = optimal_batch(compute)
    sequences = 1 << max(0, round(math.log2(best / length)))
    why = f"0.2920 C^0.3271 = {best:,.0f} tokens at C = {compute:.3g} (DeepSeek LLM, arXiv:2401.02954); power of two"
    return int(sheet.size("global_batch_size", sequences, why))


def _steps(sheet: _Sheet, dial: Dial, tokens: float, per_step: int) -> int:
    """Steps of the run. A budget that the recipe gives stays as it is, however small."""
    steps = math.ceil(tokens / per_step)
    if sheet.given("tokens") is not None or sheet.given("steps") is not None:
        return steps
    if steps < LEAST_STEPS:
        raise ValueError(
            f"{tokens:,.0f} tokens are {steps} steps of {per_step:,}, too few to train (at least {LEAST_STEPS}): raise "
            f"the depth or tokens_per_parameter ({dial.tokens_per_parameter:g}), or lower sequence_length"
        )
    sheet.settle("steps", steps, f"{steps * per_step:,} tokens: {sheet.why_steps}")
    return steps


def _schedule(sheet: _Sheet, compute: float, per_step: int, steps: int) -> None:
    """Warm-up, stable, linear decay; a recipe's own decay is left alone as a whole."""
    best, at = "learning_rate_scheduler", optimal_batch(compute)
    rate = _rounded(optimal_learning_rate(compute) * math.sqrt(per_step / at))
    why = (
        f"0.3118 C^-0.1250 = {optimal_learning_rate(compute):.3g} (DeepSeek LLM), x sqrt(batch {per_step:,} / "
        f"{at:,.0f}) (Malladi et al. 2022, arXiv:2205.10287)"
    )
    given = sheet.config.get(best) or {}
    own_decay = any(name.startswith("lr_decay") for name in given)
    sheet.settle(f"{best}.learning_rate", rate, why)
    warmup = max(1, min(WARMUP_STEPS, steps // 20))
    sheet.settle(f"{best}.lr_warmup_steps", warmup, f"DeepSeek LLM's {WARMUP_STEPS:,}, at most 5 % of the steps")
    sheet.settle(f"{best}.lr_warmup_style", "linear", "the only one that starts from 0")
    if own_decay:
        return
    decay = max(1, steps // DECAY_SHARE)
    why = "warm-up, stable, decay over the last 20 % (Hagele et al. 2024, arXiv:2405.18392; SmolLM2)"
    sheet.settle(f"{best}.lr_decay_style", "linear", why)
    sheet.settle(f"{best}.lr_decay_starting_step", steps - decay, why)
    sheet.settle(f"{best}.lr_decay_steps", decay, why)
    sheet.settle(f"{best}.min_decay_lr", 0.0, "SmolLM2")


def _rounded(value: float) -> float:
    """Three digits: the last bits of a power differ between machines, and would be another key."""
    return float(f"{value:.3g}")


class _Sheet:
    """A config being filled in: what is given stays, what is missing is derived and noted."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
        self.derived: list[Derived] = []
        self.why_steps = ""

    def given(self, path: str) -> int | float | None:
        """The value at `path`. Raises ValueError for one that no size could have."""
        block, name = self._at(path)
        value = block.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ValueError(f"{path} is {value!r}: the dial derives other fields from it; give a positive number")
        return value

    def settle(self, path: str, value: Any, why: str) -> Any:
        """The value in force at `path`: what is given, else `value`."""
        block, name = self._at(path)
        if block.get(name) is None:
            block[name] = value
            self.derived.append(Derived(path, value, why))
        return block[name]

    def size(self, path: str, value: int, why: str) -> Any:
        """`settle` for a number that others are derived from. Raises ValueError for one that no size could have."""
        self.settle(path, value, why)
        return self.given(path)

    def _at(self, path: str) -> tuple[dict[str, Any], str]:
        head, _, rest = path.partition(".")
        if not rest:
            return self.config, head
        block = self.config.setdefault(head, {})
        if not isinstance(block, dict):
            raise ValueError(f"{head} is {block!r}: give a mapping, or leave it to the dial")
        return block, rest
