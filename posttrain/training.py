"""What every trainer of this package needs around transformers' Trainer, whichever library it comes from.

acorn's rows, folders, checkpoints and tracker come in here, and what would pass in silence is refused: one process
where several were asked for, no DDP around the model, a loss that is not a number (transformers 5.23, accelerate 1.15).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from acorn.launch import accelerate_config
from acorn.stage import Job
from acorn.stopping import Stopped, StopRequest
from acorn.tracking import Tracker
from posttrain.arguments import misplaced, split_batch
from posttrain.checkpoint import Checkpoint, newest_whole
from posttrain.config import PosttrainConfig, PosttrainExecution

TRAINED = {"loss", "learning_rate", "grad_norm", "epoch", "mean_token_accuracy", "entropy", "aux_loss"}
TRAINED |= {"reward", "reward_std", "frac_reward_zero_std", "kl"}
GROUPS = ("rewards/", "logps/", "logits/", "completions/")
"""Of Trainer's log lines, what is passed on as `train/...`: these names, and everything under these groups."""


class NotFinite(ArithmeticError):
    """A loss or gradient that is no number; the weights are still those of the step before."""


class FiniteUpdates(Trainer):  # type: ignore[misc]
    """Mixin for a TRL trainer: raises NotFinite before the update, where Trainer would log the average of other losses
    instead and go on with weights that are no numbers any more."""

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        loss = super().training_step(*arguments, **named)
        if not torch.isfinite(loss).all():
            self._refuse("loss", loss)
        return loss

    def _get_grad_norm(self, *arguments: Any, **named: Any) -> Any:
        norm = super()._get_grad_norm(*arguments, **named)
        # Under fp16 the scaler looks for overflows itself, and leaves such steps out. DeepSpeed has none before a step.
        if norm is not None and not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)).all():
            self._refuse("gradient norm", norm)
        return norm

    def _refuse(self, what: str, value: Any) -> None:
        raise NotFinite(
            f"step {self.state.global_step + 1}: the {what} is {float(value)}, so the weights are left as they were; "
            "lower the learning rate, set training.max_grad_norm, or look for broken rows with "
            "`acorn data show RECIPE STEP --labels`"
        )


def trainer_arguments(job: Job) -> dict[str, Any]:
    """Arguments for a class derived from `TrainingArguments`: the recipe's, acorn's own, defaults for small models.

    Raises ValueError for an argument in the wrong block and for a batch that does not divide.
    """
    config: PosttrainConfig = job.config
    execution: PosttrainExecution = job.execution
    if problems := misplaced(config.training, execution.training):
        raise ValueError("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
    micro, accumulation = split_batch(config.global_batch_size, execution.micro_batch_size, job.world_size)
    return {
        # TRL turns both on: bf16 is the recipe's choice, and checkpointing costs 60-80 % of the speed at toy sizes.
        "bf16": False,
        "gradient_checkpointing": False,
        "ddp_find_unused_parameters": False,
        **config.training,
        **execution.training,
        "seed": config.seed,
        "output_dir": str(job.scratch / "checkpoints"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "use_cpu": job.device() == "cpu",
        "logging_steps": execution.logging_steps,
        "save_strategy": "steps",
        "save_steps": execution.save_steps,
        "report_to": "none",
    }


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Id of `token`; ValueError where the tokenizer has no such single token."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(
            f"the model's tokenizer has no token {token!r}; set `end_of_turn` to the one its template uses"
        )
    return int(found)


def train(job: Job, trainer: Any, flops_per_token: int, finish: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Train from the newest whole checkpoint on, then `finish` (write the model, measure it); the final metrics."""
    newest = newest_checkpoint(trainer)
    trainer._total_train_tokens = newest.tokens if newest else 0  # Trainer starts at 0 again after a resume
    parameters = count_parameters(trainer)
    with job.track(resume_step=newest.step if newest else None) as tracker, StopRequest() as stop:
        trainer.add_callback(TrackerCallback(tracker, trainer, expected_kind(job), stop))
        trainer.train(resume_from_checkpoint=str(newest.path) if newest else None)
        raise_if_stopped(trainer)
        tokens = trainer._total_train_tokens
        last = next(line for line in reversed(trainer.state.log_history) if "loss" in line)
        metrics = {
            **passed_on(last),
            **finish(),
            "ledger/tokens": tokens,
            "ledger/flops": flops_per_token * parameters * tokens,
        }
        tracker.log(metrics)
    return metrics


def raise_if_stopped(trainer: Any) -> None:
    """Raise Stopped where SIGTERM ended training before its last step; the checkpoint of the step is written."""
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if step >= steps:
        return
    if trainer.args.should_save:
        print(
            f"\nSIGTERM: stopped after step {step} of {steps}, with its checkpoint in "
            f"{trainer.args.output_dir}/checkpoint-{step}. The same command goes on from there.",
            file=sys.stderr,
        )
    raise Stopped(step)


def newest_checkpoint(trainer: Any) -> Checkpoint | None:
    """Rank 0's newest whole checkpoint, the same for all processes."""
    found = [newest_whole(Path(trainer.args.output_dir), trainer.layout) if trainer.args.should_save else None]
    broadcast_object_list(found, from_process=0)
    return found[0]


class TrackerCallback(TrainerCallback):  # type: ignore[misc]
    """Passes Trainer's log lines on to acorn's tracker, checks what the model was wrapped in, ends the run well: after
    the last step, or after SIGTERM with a checkpoint."""

    def __init__(self, tracker: Tracker, trainer: Any, kind: str, stop: StopRequest) -> None:
        self.tracker, self.trainer, self.kind, self.stop = tracker, trainer, kind, stop
        self.tokens, self.since = 0, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        assert_wrapped(self.trainer.model_wrapped, self.kind)
        self.tokens, self.since = self.trainer._total_train_tokens, time.perf_counter()

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # however few steps there are, the last one is logged
            # Trainer resumes from a checkpoint of the last step with one step more (transformers 5.23).
            control.should_save = False
        elif state.global_step % self.trainer.steps_between_states == 0 and self._asked_to_stop():
            control.should_save = control.should_log = control.should_training_stop = True

    def _asked_to_stop(self) -> bool:
        """Whether any process got SIGTERM: then all of them stop behind the same step."""
        if not torch.distributed.is_initialized():
            return self.stop.asked
        asked = torch.tensor(int(self.stop.asked), device=self.trainer.args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float], **___: Any) -> None:
        if "eval_loss" in logs:
            self.tracker.log(validated(logs), step=state.global_step)
        if "loss" not in logs:  # that, or Trainer's summary at the end
            return
        now, tokens = time.perf_counter(), self.trainer._total_train_tokens
        speed = (tokens - self.tokens) / (now - self.since)
        self.tokens, self.since = tokens, now
        line = {**passed_on(logs), "train/tokens": tokens, "train/tokens_per_second": round(speed, 1)}
        self.tracker.log(line, step=state.global_step)


def passed_on(logs: Mapping[str, float]) -> dict[str, float]:
    """Trainer's log line under acorn's metric names."""
    kept = (name for name in logs if name in TRAINED or name.startswith(GROUPS))
    return {f"train/{name}": logs[name] for name in kept}


def validated(logs: Mapping[str, float]) -> dict[str, float]:
    """Trainer's line of an evaluation under acorn's metric names, without its timings."""
    timings = ("_runtime", "_per_second")
    named = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
    return {f"validation/{name}": value for name, value in named.items() if not f"_{name}".endswith(timings)}


def count_parameters(trainer: Any) -> int:
    """Parameters that a token passes through: all but an input embedding with a separate output head."""
    total: int = sum(_numel(parameter) for parameter in trainer.model.parameters())
    inner = trainer.accelerator.unwrap_model(trainer.model)
    tied = inner.get_output_embeddings() is None or inner.config.get_text_config().tie_word_embeddings
    return total - (0 if tied else _numel(inner.get_input_embeddings().weight))


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor here


def save_weights(job: Job, trainer: Any) -> bool:
    """Write `config.json` and the weights, gathered from all processes, to `job.out`; whether this process did so."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # all ranks take part
    if job.rank != 0:
        return False
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if getattr(job.config, "lora", None) is not None:
        from posttrain.adapters import save_adapted

        save_adapted(job, model, weights)
        return True
    if weights is not None:  # gathered tensors no longer share memory, so a tied head would be written twice
        weights = {name: tensor for name, tensor in weights.items() if name not in model.all_tied_weights_keys}
    model.save_pretrained(job.out, state_dict=weights)
    return True


@contextmanager
def cleared_state() -> Iterator[None]:
    """Leave no process group and no accelerate state behind, so that a process may run another step."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def expected_kind(job: Job) -> str:
    """`one`, `ddp`, `fsdp` or `deepspeed`: what was asked for, by acorn or by a launcher of the user's own."""
    if job.execution.accelerate:
        kind = yaml.safe_load(accelerate_config(job.execution).read_text())["distributed_type"]
    else:  # `accelerate launch --config_file ... -m posttrain`: the recipe does not name the file
        asked = (name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}") == "true")
        kind = next(asked, "")
    return {"FSDP": "fsdp", "DEEPSPEED": "deepspeed"}.get(kind, "ddp" if job.world_size > 1 else "one")


def assert_launched(job: Job, arguments: Any) -> None:
    """Raise RuntimeError unless this process sees as many others as the execution asked for.

    accelerate is known to start one process where a CPU file says several, and several that do not know each other.
    """
    processes = job.execution.processes
    asked = job.world_size if processes is None else processes * job.execution.nodes
    if not asked == job.world_size == arguments.world_size:
        raise RuntimeError(
            f"execution asked for {asked} processes, the launcher announced {job.world_size} (WORLD_SIZE) and the "
            f"trainer sees {arguments.world_size} ({arguments.distributed_state.distributed_type}); on CPUs use "
            "configs/accelerate/cpu-ddp.yaml: MULTI_CPU files and `use_cpu: true` start one process, or several "
            "that train alone"
        )


def assert_wrapped(model: Any, kind: str) -> None:
    """Raise RuntimeError unless `model` is wrapped as the launch configuration asked for."""
    classes = [cls.__name__ for cls in type(model).__mro__]
    names = {"DistributedDataParallel": "ddp", "FullyShardedDataParallel": "fsdp", "FSDPModule": "fsdp"}
    names["DeepSpeedEngine"] = "deepspeed"
    found = next((names[name] for name in classes if name in names), "one")
    alone = {found, kind} == {"one", "ddp"} and torch.distributed.is_initialized()
    if found != kind and not (alone and torch.distributed.get_world_size() == 1):
        raise RuntimeError(
            f"the launch configuration asked for {kind}, but the model is a {classes[0]} ({found}): its processes "
            "would train apart or in the wrong way; compare `execution.accelerate` with configs/accelerate/"
        )
