"""nanotron's trainer, as acorn drives it.

`DistributedTrainer` trains; what is overridden here is its edges: initial weights that do not depend on the topology,
checkpoints that are published whole, metrics that go to acorn's tracker, a validation pass, recomputed activations, an
update that can be refused (not finite: the run stops; a spike: it goes on without) and a clean end on SIGTERM. Import
this only after `pretrain.compat.install`.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nanotron import distributed as dist
from nanotron.config import LlamaConfig
from nanotron.models.llama import LlamaForTraining
from nanotron.parallel.pipeline_parallel.tensor_pointer import TensorPointer
from nanotron.serialize import weights as nanotron_weights
from nanotron.trainer import DistributedTrainer
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from acorn import devices
from acorn.stopping import Stopped, StopRequest
from acorn.tracking import Tracker
from pretrain.checkpoints import CheckpointFolder
from pretrain.config import PretrainConfig, PretrainExecution
from pretrain.data import Samples, TokenFile, micro_batches, validation_batches
from pretrain.estimate import flops_per_token
from pretrain.initial import InitialWeights
from pretrain.spikes import SpikeGuard

RESIDUAL_PROJECTIONS = ("o_proj.weight", "down_proj.weight")


@dataclass
class Run:
    """What the trainer needs to know of the step it serves."""

    config: PretrainConfig
    execution: PretrainExecution
    train: Samples
    validation: TokenFile
    validation_bytes: int
    checkpoints: CheckpointFolder
    tracker: Tracker
    device: str
    initial: InitialWeights | None = None
    """Weights to begin with; None: random ones."""
    stop: StopRequest = field(default_factory=StopRequest)


class SeededLlama(LlamaForTraining):  # type: ignore[misc]
    """nanotron's Llama with initial weights that are the same for every topology and device: given or random.

    nanotron draws each shard from the process's own generator, so tp=2 starts from other weights than tp=1. Here every
    weight has a generator of its own, seeded by its name; a process draws the whole tensor and keeps its slice (1 s per
    100 million weights). Distributions as in nanotron: normal, `std` and `std / sqrt(2 * layers)`; norms start at 1.
    """

    def __init__(self, *args: Any, initial: InitialWeights | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._initial = initial

    @torch.no_grad()
    def init_model_randomly(self, config: Any) -> None:
        """Called by nanotron when there is no checkpoint of its own to go on from."""
        for own_name, parameter in self.named_parameters():
            name = parameter.get_tied_info().name if parameter.is_tied else own_name
            shape = parameter.get_sharded_info().unsharded_shape if parameter.is_sharded else parameter.shape
            if self._initial is not None:
                whole = self._initial.tensor(name)
            elif parameter.dim() == 1:
                whole = torch.ones_like(parameter)
            else:
                whole = random_weight(name, tuple(map(int, shape)), config)
            if not parameter.is_sharded:
                parameter.copy_(whole)
                continue
            for pair in parameter.get_sharded_info().local_global_slices_pairs:
                parameter[pair.local_slices] = whole[pair.global_slices].to(parameter)


def random_weight(name: str, shape: tuple[int, ...], config: Any) -> Tensor:
    """The whole of weight `name`, in float32; `config` is nanotron's."""
    std, layers = config.model.init_method.std, config.model.model_config.num_hidden_layers
    scale = std / math.sqrt(2 * layers) if name.endswith(RESIDUAL_PROJECTIONS) else std
    seed = hashlib.sha256(f"{config.general.seed}/{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed) >> 1)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, scale, generator=generator)


class Trainer(DistributedTrainer):  # type: ignore[misc]
    """One run of pre-training, on this process's share of the work."""

    def __init__(self, arguments: dict[str, Any], run: Run, config_file: Path) -> None:
        """`arguments`: nanotron's YAML (`pretrain.arguments`), which it insists on reading from `config_file`."""
        self.run = run
        self._logged_at = (0, 0.0)
        self._learning_rate = 0.0
        self._last_loss = math.nan
        self._guard = SpikeGuard(run.config.skip_spikes) if run.config.skip_spikes else None
        self._outputs: list[dict[str, Any]] = []
        self._flops_per_token = flops_per_token(run.config, arguments["model"]["model_config"]["vocab_size"])
        config_file.write_text(yaml.safe_dump(arguments))
        super().__init__(str(config_file), model_class=partial(SeededLlama, initial=run.initial))
        if not isinstance(self.model_config, LlamaConfig):
            raise TypeError(f"nanotron read the model section as {type(self.model_config).__name__}, not LlamaConfig")

    # --- set-up -----------------------------------------------------------------------------------------------------

    def post_init(self) -> None:
        optimizer = self.optimizer.get_base_optimizer()
        # On resume the scheduler sets the groups' rate for step 0 before it is restored: one step would run on that.
        for group, rate in zip(optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self._apply_update, self.optimizer.step = self.optimizer.step, self._update
        if self._guard is not None:
            if self.init_checkpoint_path is not None:
                self._guard.load(self.init_checkpoint_path)
            engine = self.config.parallelism.pp_engine
            engine.train_batch_iter = partial(self._keep_outputs, engine.train_batch_iter)
        if self.run.execution.recompute:
            self._recompute_layers()
        peak = peak_flops(self.run.device, self.run.config.dtype)
        self._peak_flops = None if peak is None else peak * self.parallel_context.world_pg.size()
        self._bar = tqdm(
            total=self.config.tokens.train_steps,
            initial=self.start_iteration_step,
            desc="pretrain",
            unit="step",
            disable=not self.is_first,
        )

    def pre_training(self, *args: Any, **kwargs: Any) -> None:
        """In nanotron: opens its own W&B run."""
        self._logged_at = (self.consumed_train_samples, time.perf_counter())

    @property
    def is_first(self) -> bool:
        return bool(dist.get_rank(self.parallel_context.world_pg) == 0)

    def fit(self) -> None:
        """Train to the last step; its checkpoint, with the validation result, is published when this returns."""
        self.train(self._train_batches())
        self._bar.close()

    def _recompute_layers(self) -> None:
        """nanotron 0.4 recomputes nothing. Without dropout the second pass needs no random state of the first."""
        for block in self.unwrapped_model.model.decoder:
            if block.rank == dist.get_rank(self.parallel_context.pp_pg):
                layer = block.pp_block
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    # --- data -------------------------------------------------------------------------------------------------------

    def _train_batches(self) -> Iterator[dict[str, Any]]:
        data_parallel = self.parallel_context.dp_pg
        for tokens_BT in micro_batches(
            self.run.train,
            self.run.config.seed,
            self.consumed_train_samples,
            self.micro_batch_size,
            dist.get_rank(data_parallel),
            data_parallel.size(),
        ):
            yield self._as_batch(tokens_BT, np.ones((len(tokens_BT), self.sequence_length), dtype=bool))

    def _as_batch(self, tokens_BT: np.ndarray, counts_BS: np.ndarray) -> dict[str, Any]:
        """Inputs for the first pipeline stage and targets for the last; elsewhere pointers to those."""
        first, last = self.unwrapped_model.input_pp_rank, self.unwrapped_model.output_pp_rank
        tokens = torch.from_numpy(tokens_BT)
        counts = torch.from_numpy(counts_BS)
        # Contiguous, or tensor-parallel processes disagree about strides.
        fields = {
            "input_ids": (first, tokens[:, :-1].contiguous()),
            "input_mask": (first, torch.ones_like(counts)),
            "label_ids": (last, tokens[:, 1:].contiguous()),
            "label_mask": (last, counts),
        }
        here = dist.get_rank(self.parallel_context.pp_pg)
        return {
            name: value if rank == here else TensorPointer(group_rank=rank) for name, (rank, value) in fields.items()
        }

    # --- steps ------------------------------------------------------------------------------------------------------

    def _keep_outputs(self, train_batch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The losses of a step's micro-batches, which nanotron does not show before the update."""
        self._outputs = train_batch(*args, **kwargs)
        return self._outputs

    def _update(self) -> None:
        """In place of the optimizer's `step`: the update, unless this step's gradient is not finite or spikes.

        The norm is of the whole model's gradients and the same on every process, so all of them stop here together.
        Reading it costs a GPU one synchronisation a step.
        """
        self._learning_rate = self.optimizer.get_base_optimizer().param_groups[0]["lr"]
        norm = self.grad_norm_unclipped.item()
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"step {self.iteration_step}: the loss or its gradient is not finite (gradient norm {norm}, learning "
                f"rate {self._learning_rate:g}); the weights were not updated and earlier checkpoints are whole. Lower "
                "learning_rate, lengthen lr_warmup_steps, or lower clip_grad"
            )
        if self._guard is None or not self._is_spike(self._guard, norm):
            self._apply_update()

    def _is_spike(self, guard: SpikeGuard, norm: float) -> bool:
        """The same on every process: all of them judge what the first one sees, in float64."""
        context, last_stage = self.parallel_context, [o["loss"] for o in self._outputs if isinstance(o["loss"], Tensor)]
        share = context.dp_pg.size() * context.tp_pg.size()
        loss = sum((one.detach().double() for one in last_stage), torch.zeros((), dtype=torch.float64)) / share
        seen = torch.stack([loss.to(self.run.device), torch.tensor(norm, dtype=torch.float64, device=self.run.device)])
        if context.world_pg.size() > 1:
            dist.all_reduce(seen[:1], group=context.world_pg)
            dist.broadcast(seen, src=0, group=context.world_pg)
        reason = guard.rejects(*seen.tolist())
        if reason and self.is_first:
            print(f"step {self.iteration_step}: update left out, {reason}", file=sys.stderr)
        return reason is not None

    def train_step_logs(self, outputs: Iterable[dict[str, Any]], loss_avg: Tensor | None) -> None:
        """In nanotron: prints, and logs to W&B. Called after every step, when all its counts are up to date."""
        self._bar.update()
        step, last = self.iteration_step, self.config.tokens.train_steps
        if step % self.run.execution.log_interval == 0 or step in (1, last):
            self._log(step, loss_avg)
        interval = self.run.execution.validation_interval
        if interval and step % interval == 0 and step != last:
            self.run.tracker.log(self.validate(), step=step)
        if step != last and self._asked_to_stop():
            self._stop()

    def _asked_to_stop(self) -> bool:
        """Whether any process got SIGTERM: then all of them stop behind the same step."""
        world = self.parallel_context.world_pg
        if world.size() == 1:
            return self.run.stop.asked
        asked = torch.tensor(int(self.run.stop.asked), device=self.run.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=world)
        return bool(asked.item())

    def _stop(self) -> None:
        folder = self.save_checkpoint()
        self._bar.close()
        if self.is_first:
            print(
                f"\nSIGTERM: stopped after step {self.iteration_step} of {self.config.tokens.train_steps}, with its "
                f"checkpoint in {folder}. The same command goes on from there.",
                file=sys.stderr,
            )
        raise Stopped(self.iteration_step)

    def _log(self, step: int, loss_avg: Tensor | None) -> None:
        self._last_loss = self._from_last_stage(loss_avg)
        samples, since = self._logged_at
        self._logged_at = (self.consumed_train_samples, time.perf_counter())
        tokens = (self.consumed_train_samples - samples) * self.sequence_length
        speed = tokens / (self._logged_at[1] - since)
        metrics = {
            "train/loss": self._last_loss,
            "train/learning_rate": self._learning_rate,
            "train/grad_norm": self.grad_norm_unclipped.item(),
            "train/tokens": self.consumed_train_samples * self.sequence_length,
            "train/tokens_per_second": speed,
            **self.run.train.progress(self.consumed_train_samples),
        }
        if self._guard is not None:
            metrics["train/skipped_updates"] = self._guard.skipped
        shown = f"loss {self._last_loss:.4f}, {speed:,.0f} tokens/s"
        if self._peak_flops is not None:
            metrics["train/mfu"] = speed * self._flops_per_token / self._peak_flops
            shown += f", MFU {metrics['train/mfu']:.1%}"
        self.run.tracker.log(metrics, step=step)
        self._bar.set_postfix_str(shown, refresh=False)  # tqdm itself adds the time that is left

    def _from_last_stage(self, loss: Tensor | None) -> float:
        """The loss on every pipeline stage; only the last one computes it."""
        value = torch.zeros((), device=self.run.device) if loss is None else loss.detach().float()
        if self.parallel_context.pp_pg.size() > 1:
            dist.all_reduce(value, group=self.parallel_context.pp_pg)
        return value.item()

    # --- validation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean negative log-likelihood (nats per token) over all of validation.bin, and bits per byte of its text.

        Windows do not see each other, so the first tokens of each are predicted from little.
        """
        data_parallel = self.parallel_context.dp_pg
        total_2 = torch.zeros(2, dtype=torch.float64, device=self.run.device)
        for tokens_BT, counts_BS in validation_batches(
            self.run.validation, self.micro_batch_size, dist.get_rank(data_parallel), data_parallel.size()
        ):
            batch = self._as_batch(tokens_BT, counts_BS)
            batch = {k: v if isinstance(v, TensorPointer) else v.to(self.run.device) for k, v in batch.items()}
            loss = self.unwrapped_model(**batch)["loss"]
            if isinstance(loss, Tensor):
                counted = int(counts_BS.sum())
                total_2 += torch.tensor([loss.item() * counted, counted], dtype=torch.float64, device=self.run.device)
        for group in (data_parallel, self.parallel_context.pp_pg):
            if group.size() > 1:
                dist.all_reduce(total_2, group=group)
        nats, tokens = total_2.tolist()
        return {
            "validation/loss": nats / tokens,
            "validation/bits_per_byte": nats / math.log(2) / self.run.validation_bytes,
        }

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @torch.no_grad()  # else its check that processes agree broadcasts tied weights inside the autograd graph
    def save_checkpoint(self) -> Path:
        """nanotron's checkpoint, written aside and published whole; the last one carries the run's final metrics."""
        context, checkpoints = self.parallel_context, self.run.checkpoints
        facts: dict[str, Any] = {
            "topology": {"tp": context.tp_pg.size(), "pp": context.pp_pg.size(), "dp": context.dp_pg.size()},
            "zero_stage": self.config.optimizer.zero_stage,
        }
        if self.iteration_step == self.config.tokens.train_steps:
            facts["metrics"] = self.validate()
            self.run.tracker.log(facts["metrics"], step=self.iteration_step)
            facts["metrics"]["train/loss"] = self._last_loss
            facts["metrics"] |= self.run.train.progress(self.consumed_train_samples)
            if self._guard is not None:
                facts["metrics"]["train/skipped_updates"] = self._guard.skipped
        if self.is_first:
            checkpoints.prepare()
        dist.barrier(context.world_pg)
        self.config.checkpoints.checkpoints_path = checkpoints.aside
        written = super().save_checkpoint()
        dist.barrier(context.world_pg)
        if self.is_first:
            if self._guard is not None:
                self._guard.save(written)
            checkpoints.publish(self.iteration_step, facts)
        dist.barrier(context.world_pg)
        return checkpoints.folder / str(self.iteration_step)

    def post_training(self) -> None:
        if self.iteration_step % self.config.checkpoints.checkpoint_interval:
            self.save_checkpoint()


def peak_flops(device: str, dtype: str) -> float | None:
    """bf16 FLOP/s of this process's GPU at best; None on a CPU, in float32 and for a GPU that is not in the table."""
    if device != "cuda" or dtype != "bfloat16":
        return None
    known = devices.by_driver_name(torch.cuda.get_device_name())
    return None if known is None else known.bf16_flops


def quieten() -> None:
    """Drop nanotron's progress bars over the tensors of each checkpoint, and torch's advice to its authors."""

    def plain(items: Iterable[Any], **_: Any) -> Iterable[Any]:
        return items

    nanotron_weights.tqdm = plain
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*deprecated", category=FutureWarning)
