"""Config of the stages `sft`, `dpo`, `grpo`, `distill`, `soup`, `prm`, `chat_rows` and `preference_rows`.

`training` holds TRL's own arguments under TRL's own names: what changes the result stands in the step's config, what
must not stands in its execution. Which is which is a table in `posttrain/arguments.py`, asked before anything runs.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from acorn.stage import Execution, Identity, Launched, Source


class PosttrainConfig(Identity):
    """Identity shared by the stages."""

    global_batch_size: int = Field(gt=0)
    """Rows (or pairs) per optimizer step, over all processes and accumulated micro-batches."""
    seed: int = 0
    """Order of the rows, dropout, and anything else that TRL draws."""
    max_rows: int | None = Field(default=None, gt=0)
    """Train on the first rows only; default: all."""
    end_of_turn: str = "<|im_end|>"
    """Token that ends an assistant's turn in the chat template: it must be trained, or the model never stops."""
    max_truncated: float = Field(default=0.05, ge=0, le=1)
    """Largest share of rows that `max_length` may cut before their end of turn; above it the step refuses to train."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's config class (`SFTConfig`, `DPOConfig`) that change the result."""


class TrlConfig(PosttrainConfig):
    """Identity shared by the stages that TRL trains. The fields here enter the key where they are set."""

    weights: dict[str, float] = Field(default_factory=dict, exclude_if=lambda given: not given)
    """How often the rows of a data input are taken, by role: 0.5 is a half drawn by `seed`, 2 is twice. Default: 1."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda given: not given)
    """Variables of the chat template, such as `enable_thinking`, for rows that do not set them."""
    lora: dict[str, Any] | None = Field(default=None, exclude_if=lambda given: given is None)
    """Arguments of `peft.LoraConfig`: train low-rank adapters alone. The artifact is the merged model; `adapter/` in it
    holds them unmerged."""
    quantization: dict[str, Any] | None = Field(default=None, exclude_if=lambda given: given is None)
    """Arguments of `transformers.BitsAndBytesConfig` for the frozen weights under `lora` (QLoRA, arXiv:2305.14314)."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if wrong := {role: weight for role, weight in self.weights.items() if weight <= 0}:
            raise ValueError(f"weights: {wrong} must be above 0; leave the input out instead")
        if self.quantization is not None and self.lora is None:
            raise ValueError("quantization: quantized weights cannot be trained; set `lora` beside it")
        return self


class SftConfig(TrlConfig):
    """Supervised fine-tuning on `chat` artifacts; `training` goes to `trl.SFTConfig`."""


class DpoConfig(TrlConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on `preferences` artifacts, and what else
    `loss_type` offers; `training` goes to `trl.DPOConfig`. The reference model is the input model."""


class GrpoConfig(TrlConfig):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) with rewards that a program checks;
    `training` goes to `trl.GRPOConfig`. `global_batch_size` counts completions, `max_rows` problems."""

    rewards: dict[Literal["answer", "math", "steps"], float] = Field(default={"answer": 1.0}, min_length=1)
    """Weights of the rewards, each 1 or 0 for a completion: `answer` is right as an exact number behind `####`, `math`
    has the reference's value to math-verify (what of it: `acorn.answers.answer_of`), `steps` has a step and no equation
    that is false."""
    skip: int = Field(default=0, ge=0)
    """Leave out the corpus's first so many problems. `chat_data` draws its own by seed: these are not the same."""


class DistillConfig(TrlConfig):
    """Generalised knowledge distillation on the student's own samples (Agarwal et al. 2023, arXiv:2306.13649, with
    lambda = 1) from a larger model of the same tokenizer; `training` goes to `trl.DistillationConfig`."""


class RowsConfig(Identity):
    """Training rows from outside."""

    path: Source
    """A file (.jsonl, .jsonl.gz, .parquet), a folder of such files, or a data set's id on the hub."""
    name: str | None = None
    """Hub: name of the data set's configuration."""
    split: str = "train"
    """Hub, or a folder: of files so named, with or without a number behind, or in a folder of that name."""
    revision: str | None = None
    """Hub: commit to pin; without it the id alone stands for the data."""
    limit: int | None = Field(default=None, gt=0)
    """The first rows only; default: all."""
    label: str = "rows"
    """`source` of the rows."""
    license: str
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be no rows of this kind; they go to `rejected.jsonl` with the reason."""


class ChatRowsConfig(RowsConfig):
    """Conversations."""

    messages: str = "messages"
    """Column that holds them."""


class PreferenceRowsConfig(RowsConfig):
    """Pairs of answers. `prompt` is read where the two sides do not begin alike."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


class SoupConfig(Identity):
    """Average of models (Wortsman et al. 2022, arXiv:2203.05482)."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Share of each model, by role; they are divided by their sum. Default: equal shares."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if wrong := {role: weight for role, weight in self.weights.items() if weight < 0}:
            raise ValueError(f"weights: {wrong} are negative")
        if self.weights and not sum(self.weights.values()):
            raise ValueError("weights: their sum is 0; give at least one model a share")
        return self


class PrmConfig(PosttrainConfig):
    """A process reward model on a `steps` artifact; `training` goes to `transformers.TrainingArguments`."""

    step_delimiter: str = Field(default="\n\n", min_length=1)
    """Text between two steps; a step is scored at the last token of the delimiter behind it."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens of a row; steps beyond are left out. Default: the model's context."""
    first_error_only: bool = True
    """Ignore the labels behind the first step labelled 0: behind an error, right and wrong have no clear meaning."""
    likelihood: bool = False
    """Add the log-probabilities that the model's own language head gives a step's tokens to the step's logit."""
    held_out: float = Field(default=0.02, ge=0, lt=1)
    """Share of the prompts kept out of training: the threshold of first errors is fitted on them (0: it is 0.5)."""


class PosttrainExecution(Launched):
    """How to run it: nothing here may change the result beyond the rounding of another summation order."""

    micro_batch_size: int | None = Field(default=None, gt=0)
    """Rows per process and forward pass; default: the largest divisor of the process's share that is at most 16."""
    save_steps: int = Field(default=500, gt=0)
    """Optimizer steps between two checkpoints. The last step has none: the model follows."""
    grace_seconds: float = Field(default=60.0, ge=0)
    """After SIGTERM, for the rest of the step and its checkpoint; Ctrl-C gives 5 s whatever stands here."""
    logging_steps: int = Field(default=10, gt=0)
    """Optimizer steps between two lines of metrics."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Arguments of TRL's config class that must not change the result (`gradient_checkpointing`, `dataloader_*`)."""


class PrmExecution(PosttrainExecution):
    """As for the others; looking at held-out rows changes no weight."""

    validation_steps: int | None = Field(default=500, gt=0)
    """Optimizer steps between two looks at the held-out rows; null: none."""


class SoupExecution(Execution):
    """Nothing: tensors are read, averaged and written one after the other."""


class RowsExecution(Execution):
    """Nothing: rows are read and written one after the other."""
