"""The source rules for nanotron 0.4, and the import hook that applies them.

Every rule holds for nanotron == 0.4 only. `when` says on which runs it is needed; `why` is the error or the wrong
result without it. `tests/pretrain/test_compat.py` takes rules away and shows that nanotron then fails.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import version
from types import CodeType, ModuleType
from typing import Literal

NANOTRON_VERSION = "0.4"
When = Literal["always", "cpu", "no_flash"]


@dataclass(frozen=True)
class Rewrite:
    """Replace `old` by `new` in the source of `module`, where it must occur exactly `count` times."""

    module: str
    old: str
    new: str
    count: int
    when: When
    why: str


_STAND_INS = "flash-attn is built for CUDA with nvcc only; torch's own attention, rotary and norms stand in"
_NO_STACK = "flash-attn's rotary wants keys and values in one tensor; ours does not, which saves 6 % of a CPU step"
_DEVICE = "the device is written out as CUDA"
_ROPE_THETA = "rope_theta is no field of LlamaConfig, and the rotary embedding is built with its default of 10000"
_ONE_MINUS_SQRT = "the decays are linear and cosine only, with no hook for another"

REWRITES: tuple[Rewrite, ...] = (
    # --- on every machine -------------------------------------------------------------------------------------------
    Rewrite(
        "nanotron.logging",
        "from nanotron.config.config import LoggingArgs",
        "LoggingArgs = None",
        1,
        "always",
        "circular import: nanotron.config imports nanotron.logging, which needs LoggingArgs for an annotation alone",
    ),
    Rewrite(
        "nanotron.serialize.metadata",
        "str(tuple(self.unsharded_shape))",
        "str(tuple(int(size) for size in self.unsharded_shape))",
        1,
        "always",
        "numpy 2 prints np.int64(128), which nanotron cannot read back when the tensor-parallel size changes",
    ),
    Rewrite(
        "nanotron.trainer",
        "dist.all_reduce(param, op",
        "dist.all_reduce(param.data, op",
        2,
        "always",
        "torch refuses an in-place all-reduce of a leaf that requires grad",
    ),
    Rewrite(
        "nanotron.trainer",
        "    import wandb\n",
        "    wandb = None\n",
        1,
        "always",
        "nanotron logs to Weights & Biases by itself, under its own project and names, wherever wandb is installed",
    ),
    Rewrite(
        "nanotron.dataloader",
        "try:\n    import datasets\n",
        "if False:\n    import datasets\n",
        1,
        "always",
        "datasets and transformers cost 5 s of start-up, for loaders that are not used here",
    ),
    Rewrite(
        "nanotron.dataloader",
        "except ImportError:\n    warnings.warn(",
        "if False:\n    warnings.warn(",
        1,
        "always",
        "the other half of the rule above",
    ),
    # --- on every machine, for what later nanotrons have -------------------------------------------------------------
    Rewrite(
        "nanotron.config.models_config",
        "    rope_scaling: Optional[dict] = None\n",
        "    rope_scaling: Optional[dict] = None\n    rope_theta: float = 10000.0\n",
        1,
        "always",
        _ROPE_THETA,
    ),
    Rewrite(
        "nanotron.models.llama",
        # Both of its rotary embeddings: the first serves nanotron's own generation, the second training.
        "            end=config.max_position_embeddings,\n        )\n\n"
        "        # NOTE: Only supported for training (TODO(fmom): position_ids not supported yet)\n"
        "        self.flash_rotary_embedding = FlashRotaryEmbedding(dim=self.d_qk, ",
        "            end=config.max_position_embeddings, theta=config.rope_theta\n        )\n\n\n"
        "        self.flash_rotary_embedding = FlashRotaryEmbedding(dim=self.d_qk, base=config.rope_theta, ",
        1,
        "always",
        _ROPE_THETA,
    ),
    Rewrite(
        "nanotron.config.config",
        'self.lr_decay_style not in ["linear", "cosine"]:\n            raise ValueError(\n'
        "                f\"lr_decay_style should be a string selected in ['linear', 'cosine'] and",
        'self.lr_decay_style not in ["linear", "cosine", "1-sqrt"]:\n            raise ValueError(\n'
        "                f\"lr_decay_style should be a string selected in ['linear', 'cosine', '1-sqrt'] and",
        1,
        "always",
        _ONE_MINUS_SQRT,
    ),
    Rewrite(
        "nanotron.helpers",
        '            else:\n                raise ValueError(f"Unknown decay style',
        '            elif lr_scheduler_args.lr_decay_style == "1-sqrt":\n'
        "                from pretrain.compat.decay import one_minus_sqrt\n"
        "                lmbda = one_minus_sqrt(\n"
        "                    (current_step - lr_decay_starting_step) / lr_decay_steps,\n"
        "                    lr_scheduler_args.learning_rate,\n"
        "                    lr_scheduler_args.min_decay_lr,\n"
        "                )\n"
        '            else:\n                raise ValueError(f"Unknown decay style',
        1,
        "always",
        _ONE_MINUS_SQRT,
    ),
    # --- without flash-attn -----------------------------------------------------------------------------------------
    Rewrite(
        "nanotron.nn.layer_norm", "flash_attn.ops.triton.layer_norm", "pretrain.compat.flash", 1, "no_flash", _STAND_INS
    ),
    Rewrite(
        "nanotron.models.llama",
        "from flash_attn.layers.rotary",
        "from pretrain.compat.flash",
        1,
        "no_flash",
        _STAND_INS,
    ),
    *(
        Rewrite("nanotron.models.llama", old, new, 1, "no_flash", _NO_STACK)
        for old, new in (
            # As many lines as before: torch.jit finds the functions further down by their line numbers.
            (
                "torch.cat([key_states.unsqueeze(0), value_states.unsqueeze(0)], dim=0)\n"
                "            # [batch_size, seq_length, 2, num_heads, d_qk]\n"
                "            key_value_states = key_value_states.permute(1, 2, 0, 3, 4).contiguous()\n",
                "(key_states, value_states)\n\n\n",
            ),
            ("torch.split(key_value_states, 1, dim=2)", "key_value_states"),
        )
    ),
    *(
        rule
        for module in ("nanotron.models.llama", "nanotron.models.starcoder2")
        for rule in (
            Rewrite(module, "from flash_attn import bert_padding", "bert_padding = None", 1, "no_flash", _STAND_INS),
            Rewrite(
                module, "from flash_attn.flash_attn_interface", "from pretrain.compat.flash", 1, "no_flash", _STAND_INS
            ),
        )
    ),
    # --- on a CPU ---------------------------------------------------------------------------------------------------
    Rewrite(
        "nanotron.parallel.context", "torch.cuda.set_device(torch.cuda.device(device_id))", "pass", 1, "cpu", _DEVICE
    ),
    Rewrite("nanotron.logging", "torch.cuda.reset_peak_memory_stats()", "pass", 1, "cpu", _DEVICE),
    Rewrite("nanotron.trainer", 'device="cuda"', 'device="cpu"', 2, "cpu", _DEVICE),
    Rewrite(
        "nanotron.models.base",
        'device: Optional[torch.device] = torch.device("cuda")',
        'device: Optional[torch.device] = torch.device("cpu")',
        1,
        "cpu",
        _DEVICE,
    ),
    Rewrite("nanotron.models.llama", '"cuda"', '"cpu"', 5, "cpu", _DEVICE),
    Rewrite("nanotron.random", 'device=torch.device("cuda")', 'device=torch.device("cpu")', 1, "cpu", _DEVICE),
    Rewrite("nanotron.dataloader", 'v.to("cuda"', 'v.to("cpu"', 1, "cpu", _DEVICE),
    Rewrite("nanotron.sanity_checks", 'tensor.to("cuda")', 'tensor.to("cpu")', 1, "cpu", _DEVICE),
    Rewrite("nanotron.serialize.main", 'tensor.to("cuda")', 'tensor.to("cpu")', 1, "cpu", _DEVICE),
    Rewrite(
        "nanotron.optim.clip_grads",
        'device=torch.device("cuda")',
        'device=torch.device("cpu")',
        2,
        "cpu",
        "the device of the norm on a process that owns no gradient is written out as CUDA: with tp 2, pp 2 and a tied "
        "head the last stage may hold shared weights alone",
    ),
    Rewrite("nanotron.optim.gradient_accumulator", 'device="cuda"', 'device="cpu"', 2, "cpu", _DEVICE),
    Rewrite(
        "nanotron.optim.gradient_accumulator",
        "# we shouldn't wait for this future for the rest of the backward",
        "accumulator.fp32_grads_allreduce_handle.wait()",
        1,
        "cpu",
        "only the last bucket's all-reduce is waited for, which on one CUDA stream means all, but not with gloo",
    ),
)


class _Loader(SourceFileLoader):
    """Loads a module from its source after applying `rules`."""

    def __init__(self, name: str, path: str, rules: Sequence[Rewrite]) -> None:
        super().__init__(name, path)
        self._rules = rules

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        for rule in self._rules:
            found = source.count(rule.old)
            if found != rule.count:
                raise ImportError(
                    f"{fullname}: expected {rule.old!r} {rule.count} times, found it {found} times; these patches "
                    f"are for the release on PyPI: pip install --force-reinstall nanotron=={NANOTRON_VERSION}"
                )
            source = source.replace(rule.old, rule.new)
        return compile(source, self.path, "exec", dont_inherit=True)


class Rewriter(importlib.abc.MetaPathFinder):
    """Finds the modules that have rules; leaves every other import alone."""

    def __init__(self, device: str, flash: bool, without: frozenset[Rewrite] = frozenset()) -> None:
        """`without`: rules to leave out (tests show with it that each is needed)."""
        self.choice = (device, flash)
        active = {"always"} | ({"cpu"} if device == "cpu" else set()) | (set() if flash else {"no_flash"})
        self._rules: dict[str, list[Rewrite]] = {}
        for rule in REWRITES:
            if rule.when in active and rule not in without:
                self._rules.setdefault(rule.module, []).append(rule)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._rules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        loader = _Loader(fullname, spec.origin, self._rules[fullname])
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def uses_flash_attention(device: str, dtype: str) -> bool:
    """Whether nanotron runs on flash-attn's kernels: on CUDA, in bfloat16 (they know no float32), when installed."""
    return device == "cuda" and dtype == "bfloat16" and importlib.util.find_spec("flash_attn") is not None


def install(device: str, flash: bool, without: frozenset[Rewrite] = frozenset()) -> None:
    """Make `import nanotron` give a nanotron that trains on `device`; call it before nanotron is imported.

    Raises RuntimeError if nanotron was imported unpatched or for another choice, ImportError for another release.
    """
    # Megatron-style overlap relies on kernels starting in the order they were queued; nanotron asserts it.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    earlier = next((finder for finder in sys.meta_path if isinstance(finder, Rewriter)), None)
    if earlier is not None:
        if earlier.choice != (device, flash):
            raise RuntimeError(f"nanotron is set up for {earlier.choice} in this process, asked for {(device, flash)}")
        return
    if (found := version("nanotron")) != NANOTRON_VERSION:
        raise ImportError(f"nanotron {found} is installed, acorn patches {NANOTRON_VERSION}; install that version")
    if any(name.startswith("nanotron.") for name in sys.modules):
        raise RuntimeError("nanotron was imported before its patches; import it through pretrain only")
    sys.meta_path.insert(0, Rewriter(device, flash, without))
