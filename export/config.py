"""Config of the export stages: `gguf` (write and prove), `answer` (ask the exported file), `release` (hand it out)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from acorn.stage import Execution, Identity
from export.ollama import modelfile

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
    "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s",
    "iq4_nl", "iq4_xs", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
]  # fmt: skip
"""llama.cpp's names. The first line is written in Python; K- and I-quants need llama.cpp's own quantiser."""
WRITTEN_HERE = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
NEED_IMPORTANCE = (
    "q2_k_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
)  # fmt: skip
"""llama.cpp refuses these without an importance matrix."""

GeneralKey = Literal["name", "author", "organization", "description", "license", "url"]

# Mean KL in nats against the fp32 model, and top-1 agreement: they bound what quantising costs; whether the conversion
# is right is decided at f32. A trained 0.8M model had 3e-5 (q8_0) to 2e-3 (q4_0), which leaves room for larger
# vocabularies and sharper models. K- and I-quants go by their bits.
_BY_BITS: dict[str, tuple[float, float]] = {
    "6": (0.02, 0.9), "5": (0.05, 0.85), "4": (0.2, 0.75), "3": (0.6, 0.6), "2": (2.0, 0.4), "1": (4.0, 0.2),
}  # fmt: skip
_QUANTS = {kind: _BY_BITS[kind.lstrip("iq")[0]] for kind in get_args(GgufType) if kind not in WRITTEN_HERE}
MAX_KL: dict[str, float] = {
    "f32": 1e-6, "f16": 1e-4, "bf16": 5e-3, "q8_0": 1e-2, "q5_1": 0.05, "q5_0": 0.05, "q4_1": 0.2, "q4_0": 0.2,
    **{kind: bounds[0] for kind, bounds in _QUANTS.items()},
}  # fmt: skip
MIN_TOP1: dict[str, float] = {
    "f32": 0.99, "f16": 0.98, "bf16": 0.95, "q8_0": 0.93, "q5_1": 0.85, "q5_0": 0.85, "q4_1": 0.75, "q4_0": 0.75,
    **{kind: bounds[1] for kind, bounds in _QUANTS.items()},
}  # fmt: skip
# With an f32 KV cache and no flash attention. f32 differs by the order of sums alone: measured are 1e-6 to 2e-5.
MAX_LOGIT: dict[str, float] = {"f32": 1e-4}


class Proof(BaseModel):
    """How the GGUFs are compared with the Hugging Face model, and what counts as equal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strings: int = Field(default=20_000, ge=1)
    """Strings tokenised by both, over the model's vocabulary and over an adversarial one: fixed edge cases first, then
    ones generated from merges, tokens, Unicode, white space, digits, special tokens and broken UTF-8."""
    code_points: bool = True
    """Every assigned code point beside letters, digits, marks and spaces, over the adversarial vocabulary."""
    documents: int = Field(default=64, ge=0)
    """Documents of the corpus input that are tokenised by both as well."""
    positions: int = Field(default=256, ge=1)
    """Held-out positions at which the next-token distributions are compared, for each type."""
    window: int = Field(default=128, ge=2)
    """Longest context of such a position, tokens."""
    probabilities: int = Field(default=4096, ge=2)
    """Likeliest tokens asked of llama.cpp per position; the rest of the vocabulary is one bucket. With a vocabulary
    of at most this size the KL is exact, beyond it a lower bound (parity.json tells the mass of the bucket)."""
    greedy_prompts: int = Field(default=8, ge=1)
    greedy_tokens: int = Field(default=24, ge=1)
    """Tokens generated greedily from each prompt; they must equal the fp32 model's for f32 and f16."""
    tie_nats: float = Field(default=0.01, ge=0)
    """A greedy token that differs is a tie, not a failure, where the fp32 model prefers its own by less than this."""
    max_kl: dict[GgufType, float] = Field(default_factory=dict)
    """Largest mean KL(fp32 || GGUF) in nats per type; a type left out keeps its default."""
    min_top1: dict[GgufType, float] = Field(default_factory=dict)
    """Smallest share of positions where both put the same token first, per type."""
    max_logit: dict[GgufType, float] = Field(default_factory=dict)
    """Largest difference of a log-probability at any position, per type; types without one are only reported."""
    seed: int = 0

    def bounding(self, types: list[str]) -> Proof:
        """The same with every threshold of `types`, and of f32, which is always proven."""
        kinds = ["f32", *types]
        bounds = {"max_kl": MAX_KL, "min_top1": MIN_TOP1, "max_logit": MAX_LOGIT}
        return self.model_copy(
            update={
                name: {kind: known[kind] for kind in kinds if kind in known} | getattr(self, name)
                for name, known in bounds.items()
            }
        )


class GgufConfig(Identity):
    """Identity of a `gguf` step."""

    types: list[GgufType] = Field(default=["f16", "q8_0"], min_length=1)
    general: dict[GeneralKey, str] = Field(default={"name": "acorn"})
    """`general.*` metadata of the files."""
    importance_tokens: int = Field(default=65_536, ge=0)
    """Training tokens of the corpus input that the importance matrix of K- and I-quants is measured on; 0: none."""
    proof: Proof = Field(default=Proof(), validate_default=True)

    @field_validator("proof")
    @classmethod
    def _bound(cls, proof: Proof, info: ValidationInfo) -> Proof:
        return proof.bounding(info.data.get("types", []))

    @field_validator("types")
    @classmethod
    def _once(cls, types: list[str]) -> list[str]:
        if len(set(types)) < len(types):
            raise ValueError(f"a type is listed twice: {types}")
        return types


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class AnswerConfig(Identity):
    """Identity of an `answer` step."""

    prompts: list[str | list[Message]] = Field(min_length=1)
    """Each a conversation, or a string: the user's one message."""
    type: GgufType | None = None
    """Which of the exported files to ask; default: the export's first type."""
    max_tokens: int = Field(default=256, ge=1)
    context: int | None = Field(default=None, ge=16)
    """Context in tokens; default: the model's own."""
    sampling: dict[str, Any] = Field(default={"temperature": 0.0})
    """llama.cpp server's sampling parameters under their own names; greedy by default."""
    seed: int = Field(default=0, ge=0)


class ReleaseConfig(Identity):
    """Identity of a `release` step."""

    name: str | None = None
    """Of the model: the card's title and the beginning of the files' names. Default: the export's `general.name`."""
    model_license: str | None = None
    """Licence of the weights as the hub spells it, such as `apache-2.0`; default: the export's `general.license`."""
    language: tuple[str, ...] = ("en",)
    """Codes of ISO 639."""
    ollama_type: GgufType | None = None
    """Which file the Modelfile names; default: the smallest."""
    ollama_parameters: dict[Annotated[str, Field(pattern=r"^\w+$")], str | int | float] = Field(default_factory=dict)
    """Ollama's parameters under their own names, such as `temperature`, beside `stop`."""

    @field_validator("ollama_parameters")
    @classmethod
    def _can_be_written(cls, parameters: dict[str, str | int | float]) -> dict[str, str | int | float]:
        modelfile("", None, [], parameters)
        return parameters


class ReleaseExecution(Execution):
    """Nothing: files are copied."""


class LlamaCppExecution(Execution):
    """Of `gguf` and `answer`. `device`: where the Hugging Face model runs, and whether llama.cpp may use a GPU."""

    threads: int | None = Field(default=None, ge=1)
    """llama.cpp's threads; default: OMP_NUM_THREADS, else the cores of this process."""
    verbose: bool = False
    """Show llama.cpp's own log."""
