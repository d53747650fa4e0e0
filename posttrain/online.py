"""Stages that train on the model's own samples: `grpo` and `distill`, with TRL's trainers (written against TRL 1.16).

Both sample a batch of completions with transformers' `generate` (or vLLM, by TRL's `use_vllm`) and then train on it.
Their checkpoints hold no samples: they lie where none are kept, and a resumed run draws what the killed one would have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from acorn.answers import Answers
from acorn.stage import Job
from posttrain.adapters import adapter_arguments
from posttrain.checkpoint import AtomicCheckpoints
from posttrain.config import GrpoConfig, TrlConfig
from posttrain.data import load_mixture
from posttrain.guards import RowCounts
from posttrain.rewards import reward_functions, unreadable
from posttrain.training import FiniteUpdates, assert_launched, cleared_state, token_id, train, trainer_arguments
from posttrain.trl import flops_of, load_tokenizer, write_model


class SampledTokens:
    """Mixin: the tokens that Trainer's state counts, prompts and completions, which its checkpoints keep."""

    state: Any

    @property
    def _total_train_tokens(self) -> int:
        return int(self.state.num_input_tokens_seen)

    @_total_train_tokens.setter
    def _total_train_tokens(self, tokens: int) -> None:
        """TRL sets it to 0, and `train` to a checkpoint's; the state knows better."""


class OrderOfEpoch(Sampler):  # type: ignore[misc]
    """TRL's sampler with an order that follows from seed and epoch. TRL 1.16 draws each epoch's order behind the one
    before, so that a run resumed in its second epoch goes through the prompts of the first again."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.epoch = sampler, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before it iterates."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + self.epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class SamplesInOrder(Trainer):  # type: ignore[misc]
    """Mixin: prompts in the order of seed and epoch."""

    def _get_train_sampler(self, dataset: Any = None) -> OrderOfEpoch:
        return OrderOfEpoch(super()._get_train_sampler(dataset))


class AtomicGRPOTrainer(SampledTokens, SamplesInOrder, FiniteUpdates, AtomicCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` with checkpoints that are whole or absent."""

    @property
    def steps_between_states(self) -> int:
        """Samples are kept for `generation_batch_size` and `num_iterations`; no checkpoint while any are left."""
        kept = self.args.steps_per_generation * self.num_iterations
        accumulated = int(self.args.gradient_accumulation_steps)
        return math.lcm(kept, accumulated) // accumulated


class AtomicDistillationTrainer(SampledTokens, SamplesInOrder, FiniteUpdates, AtomicCheckpoints, DistillationTrainer):  # type: ignore[misc]
    """`trl.DistillationTrainer` with checkpoints that are whole or absent."""


def grpo(job: Job) -> dict[str, float]:
    """Train `inputs["model"]` on the problems of `inputs["corpus"]` by rewards for what it answers (stage `grpo`)."""
    with Answers() as answers:
        # Sampling costs 2 per parameter and token, and so does the reference model where there is one.
        return run(job, lambda job: build_grpo(job, answers), lambda trainer: 10 if trainer.beta else 8)


def distill(job: Job) -> dict[str, float]:
    """Train `inputs["model"]` towards the distribution of `inputs["teacher"]` on its own answers (stage `distill`)."""
    return run(job, build_distill, lambda trainer: 8 + round(2 * _size(trainer.teacher_model) / _size(trainer.model)))


def run(job: Job, build: Callable[[Job], tuple[Any, RowCounts]], flops: Callable[[Any], int]) -> dict[str, float]:
    """Build the trainer, train, write the model; all processes of the job call it."""
    with cleared_state():
        trainer, counts = build(job)
        end_of_turn = token_id(trainer.processing_class, job.config.end_of_turn)
        require_settings(job, trainer, end_of_turn)

        def finish() -> dict[str, float]:
            write_model(job, trainer, end_of_turn)
            return {"train/rows": counts.rows, "train/truncated_rows": counts.truncated}

        return train(job, trainer, flops_of(job.config, flops(trainer)), finish)


def build_grpo(job: Job, answers: Answers) -> tuple[AtomicGRPOTrainer, RowCounts]:
    """Trainer, and what its problems were. Raises ValueError for an answer that a reward cannot compare."""
    config: GrpoConfig = job.config
    arguments = GRPOConfig(**online_arguments(job), reward_weights=list(config.rewards.values()))
    assert_launched(job, arguments)
    tokenizer = load_tokenizer(job)
    problems = load_problems(job.inputs["corpus"] / "problems" / "train.jsonl", config, answers)
    rows, counts = fitting(problems, tokenizer, config, arguments, [job.inputs["model"]])
    trainer = AtomicGRPOTrainer(
        model=str(job.inputs["model"]),
        reward_funcs=reward_functions(config.rewards, answers),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        **adapter_arguments(config, job.device()),
    )
    return trainer, counts


def build_distill(job: Job) -> tuple[AtomicDistillationTrainer, RowCounts]:
    """Trainer, and what its prompts were. Raises ValueError for a teacher with another tokenizer."""
    student, teacher = job.inputs["model"], job.inputs["teacher"]
    arguments = DistillationConfig(**online_arguments(job))
    assert_launched(job, arguments)
    if (student / "tokenizer.json").read_bytes() != (teacher / "tokenizer.json").read_bytes():
        raise ValueError(
            f"the teacher's tokenizer.json ({teacher}) is not the student's ({student}): distributions over different "
            "tokens cannot be compared; choose a teacher of the same tokenizer"
        )
    tokenizer = load_tokenizer(job)
    prompts = load_prompts(load_mixture(job, ("messages",), job.scratch / "rows"), job.config)
    rows, counts = fitting(prompts, tokenizer, job.config, arguments, [student, teacher])
    trainer = AtomicDistillationTrainer(
        model=str(student),
        teacher_model=str(teacher),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        **adapter_arguments(job.config, job.device()),
    )
    return trainer, counts


def online_arguments(job: Job) -> dict[str, Any]:
    """Arguments for TRL's config classes of both stages."""
    return {**trainer_arguments(job), "chat_template_kwargs": job.config.chat_template_kwargs or None}


def load_problems(path: Path, config: GrpoConfig, answers: Answers) -> Dataset:
    """Columns `prompt` and `answer` of a corpus's problems behind the first `skip`, at most `max_rows`."""
    if not path.exists():
        raise ValueError(f"{path} is missing: grpo needs a corpus with problems, whose answers a program can check")
    lines = path.read_text(encoding="utf-8").splitlines()
    end = None if config.max_rows is None else config.skip + config.max_rows
    problems = [json.loads(line) for line in lines[config.skip : end]]
    if not problems:
        raise ValueError(f"{path} has {len(lines)} problems, and skip is {config.skip}: none is left")
    for problem in problems:
        if why := unreadable(problem["answer"], list(config.rewards), answers):
            raise ValueError(f"{path}, problem {problem['id']}: {why}")
    rows = [
        {"prompt": [{"role": "user", "content": problem["question"]}], "answer": problem["answer"]}
        for problem in problems
    ]
    return Dataset.from_list(rows)


def load_prompts(rows: Dataset, config: TrlConfig) -> Dataset:
    """Column `prompt`: each conversation up to its last assistant's turn.

    Raises ValueError for a row that asks nothing, and for tools or template variables of its own: TRL renders all
    prompts alike.
    """
    prompts = []
    for number, row in enumerate(rows):
        messages = row["messages"]
        answers = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
        prompt = messages[: answers[-1]] if answers else messages
        if not prompt:
            raise ValueError(f"row {number} has nothing before its assistant's turn, so there is no prompt to answer")
        if row["tools"] or row["chat_template_kwargs"] != config.chat_template_kwargs:
            raise ValueError(
                f"row {number} has tools or template variables of its own ({row['chat_template_kwargs']}), and TRL "
                "renders all prompts alike; leave such rows out, or set the step's `chat_template_kwargs`"
            )
        prompts.append({"prompt": prompt})
    return Dataset.from_list(prompts)


def fitting(
    rows: Dataset, tokenizer: Any, config: TrlConfig, arguments: Any, models: list[Path]
) -> tuple[Dataset, RowCounts]:
    """Rows whose prompt leaves room for `max_completion_length` in the context of all `models`, and the counts.

    Raises ValueError where more than `max_truncated` of the rows are too long.
    """
    context = min(_context(model) for model in models)
    room = context - arguments.max_completion_length
    settings = {"add_generation_prompt": True, "return_dict": True, **config.chat_template_kwargs}
    lengths = [len(tokenizer.apply_chat_template(prompt, **settings)["input_ids"]) for prompt in rows["prompt"]]
    kept = [number for number, length in enumerate(lengths) if length <= room]
    counts = RowCounts(rows=len(rows), truncated=len(rows) - len(kept))
    if counts.truncated > config.max_truncated * counts.rows:
        raise ValueError(
            f"{counts.truncated} of {counts.rows} prompts have more than {room} tokens, and max_completion_length "
            f"{arguments.max_completion_length} leaves no more of the model's {context} positions (allowed: "
            f"{config.max_truncated:.1%}, `max_truncated`); lower it, or drop long prompts where the data is made"
        )
    return rows.select(kept), counts


def require_settings(job: Job, trainer: Any, end_of_turn: int) -> None:
    """ValueError where answers would never end, or where a checkpoint would fall between samples that are kept."""
    ends = trainer.generation_config.eos_token_id
    if end_of_turn not in (ends if isinstance(ends, list) else [ends]):
        raise ValueError(
            f"the model's generation_config.json ends at {ends}, not at `end_of_turn` (id {end_of_turn}): no answer "
            "would ever end; fine-tune the model first (`sft` adds it)"
        )
    between = trainer.steps_between_states
    if job.execution.save_steps % between:
        raise ValueError(
            f"execution.save_steps {job.execution.save_steps} is no multiple of {between}, the optimizer steps that "
            "share one batch of samples (generation_batch_size, num_iterations): a checkpoint would lose samples; use "
            f"{max(1, job.execution.save_steps // between) * between}"
        )


def _size(model: Any) -> int:
    return sum(int(parameter.numel()) for parameter in model.parameters())


def _context(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text()).get("max_position_embeddings", 1024))
