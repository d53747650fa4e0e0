"""No flags: what a server needs to know, from the model's files and the machine, before anything is loaded.

`choose` looks at tensor sizes, the config and what memory and cores there are (`serve.sizes`, `engine.limits`), and
refuses what cannot fit while that costs nothing. What only a clock can say (dtype on a CPU, chunk, rows) it sets to
careful values, which the worker replaces once it has the model (`serve.probe`). A choice has its value and one sentence
of why; what the user fixed by a flag is taken over, and then only checked.

Memory is shared out so: the worker's libraries, the weights, a verifier if the model has one; of the rest half goes to
the key-value cache. The other half is for what comes and goes (a batch grows by half at a time, and is copied then),
for the file cache, and on a machine without a limit for other programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from engine.adapters import find_gguf
from engine.limits import Memory, cores, ram, vram
from serve.settings import EngineKind, Settings, Wishes
from serve.sizes import BYTES, ModelSize, folder_size, gguf_size

LIBRARIES = 450_000_000
"""Bytes of a worker with torch and transformers before it has a model: 415 MB on Linux."""
LLAMA = 200_000_000
"""The same for llama.cpp."""
TORCH = 350_000_000
"""What torch and transformers add to that once a verifier is loaded: 353 MB on Linux, from 112 to 465."""
SHARE = {"cpu": 0.5, "cuda": 0.85}
"""Of what is left beside the weights, for the key-value cache."""
LEAST = 256
"""Tokens of key-value cache below which a server is of no use."""
ENOUGH = 2048
"""Tokens of key-value cache for which the dtype of the files is kept."""
ROW = 512
"""Tokens of cache that a row should find, on average."""
MOST_CONTEXTS = 256
"""Whole contexts in the key-value cache; more are not taken even where memory would have them."""
UNKNOWN_CONTEXT = 32_768
VLLM_CHUNK, VLLM_ROWS = 2048, 256
"""vLLM's own on most GPUs."""
LLAMA_CONTEXT, LLAMA_ROWS = 8192, 8
"""llama.cpp takes rows x context positions at once and for good, so neither is larger than most conversations need."""
SETTLED = ("dtype", "context", "kv_tokens", "chunk", "rows", "threads", "max_waiting")
"""By the worker of a model folder (`serve.probe`), unless fixed; vLLM settles its cache alone."""
UNTIMED = "not timed yet"
"""Why a field has its careful value until the worker settles it."""
FIELDS = ("engine", "device", "dtype", "context", "kv_tokens", "chunk", "rows", "threads", "max_waiting")


@dataclass(frozen=True)
class Machine:
    """What there is, apart from the model."""

    ram: Memory
    vram: Memory | None
    cores: tuple[int, str]
    vllm: bool = False

    @classmethod
    def here(cls) -> Machine:
        # A driver alone is no help to a build of torch that is for CPUs.
        gpu = None if _version("torch").endswith("+cpu") else vram()
        return cls(ram(), gpu, cores(), vllm=find_spec("vllm") is not None)


def choose(
    path: Path, wishes: Wishes | None = None, verifier: Path | None = None, machine: Machine | None = None
) -> Settings:
    """Settings of a server for the model folder or GGUF at `path`.

    `verifier`: the folder of the process reward model that searches use. Raises FileNotFoundError for a path that is
    not there, ValueError, with the bytes and a remedy, for what cannot fit, and for a flag that cannot be followed.
    """
    choice = _Choice(wishes or Wishes(), machine or Machine.here())
    path = path.expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a model folder, a .gguf file or a folder of them")
    gguf = find_gguf(path)
    _check(choice.wishes, gguf is not None, choice.machine)
    if choice.wishes.engine == "llamacpp" and gguf is None:
        raise ValueError(
            f"{path} is a model folder, llama.cpp runs GGUF files: export it first, or take --engine torch"
        )
    if gguf is not None and choice.wishes.engine in (None, "llamacpp"):
        settings = _llama(choice, gguf, verifier)
    else:
        if not (path / "config.json").exists():
            engine = f"--engine {choice.wishes.engine}: " if choice.wishes.engine else ""
            raise ValueError(f"{engine}{path} is no model folder (it holds no config.json), nor one with a GGUF file")
        settings = _torch(choice, path, verifier)
    settled = {"torch": SETTLED, "vllm": ("kv_tokens",)}.get(settings.engine, ())
    settings = replace(settings, unsettled=tuple(name for name in settled if name not in choice.fixed))
    return replace(settings, reasons=choice.reasons)


def table(settings: Settings) -> Table:
    """Every choice, its value and why, for a terminal."""
    shown = Table.grid(padding=(0, 2))
    shown.add_row("[bold]model[/]", str(settings.model), f"[dim]{settings.reasons.get('model', '')}[/]")
    for name in (*FIELDS, "verifier"):
        value = getattr(settings, name)
        if value is not None or name in settings.reasons:
            text = f"{value:,}" if isinstance(value, int) else str(value or "none")
            shown.add_row(name, text, f"[dim]{settings.reasons.get(name, '')}[/]")
    return shown


def show(settings: Settings, console: Console | None = None) -> None:
    """Print the table."""
    (console or Console(stderr=True)).print(table(settings))


class _Choice:
    """What was chosen so far, and why."""

    def __init__(self, wishes: Wishes, machine: Machine) -> None:
        self.wishes, self.machine = wishes, machine
        self.reasons: dict[str, str] = {}
        self.fixed: list[str] = []

    def of(self, name: str, value: Any, why: str) -> Any:
        """The value of a field: what was wished for, else `value`."""
        if (wished := getattr(self.wishes, name, None)) is not None:
            self.fixed.append(name)
            without = "the worker would time it" if why == UNTIMED else f"{value}: {why}"
            value, why = wished, f"fixed by --{name.replace('_', '-')}; else {without}"
        self.reasons[name] = why
        return value


def _torch(choice: _Choice, folder: Path, verifier: Path | None) -> Settings:
    size, machine = folder_size(folder), choice.machine
    gpu = machine.vram is not None and choice.wishes.device != "cpu"
    device = choice.of("device", "cuda" if gpu else "cpu", machine.vram.what if gpu and machine.vram else "no GPU here")
    engine = choice.of("engine", *_engine(gpu, machine.vllm, verifier is not None))
    if engine == "vllm" and verifier is not None:
        choice.reasons["verifier"] = "not loaded, and search is off: vLLM has none; leave --engine out to have both"
        verifier = None
    memory = machine.vram if gpu and machine.vram else machine.ram
    extra = folder_size(verifier).weights("float32") if verifier is not None else 0
    fixed_cost = (0 if gpu else LIBRARIES) + extra
    # Of half of what is left beside the weights, in each dtype, so many tokens.
    room = {
        dtype: int((memory.free - fixed_cost - size.weights(dtype)) * SHARE["cuda" if gpu else "cpu"])
        // size.cache(dtype)
        for dtype in BYTES
    }
    positions = size.context or UNKNOWN_CONTEXT
    dtype = choice.of("dtype", *_dtype(size, room, gpu, min(positions, ENOUGH)))
    wanted = max(min(LEAST, positions), choice.wishes.kv_tokens or 0, choice.wishes.context or 0)
    if room[dtype] < wanted:
        raise ValueError(_too_large(size, dtype, memory, fixed_cost, wanted))
    kv_tokens, context, rows = _cache(choice, size, dtype, room[dtype], positions, memory, engine == "vllm")
    if engine == "vllm":
        chunk = choice.of("chunk", VLLM_CHUNK, "tokens of one vLLM step, prompts and rows together; vLLM's own default")
    else:
        chunk = choice.of("chunk", 512 if gpu else 128, UNTIMED)
    threads, source = machine.cores
    settings = Settings(
        model=folder,
        engine=engine,
        device=device,
        dtype=dtype,
        context=context,
        kv_tokens=kv_tokens,
        chunk=chunk,
        rows=rows,
        threads=choice.of("threads", threads, source),
        max_waiting=_waiting(choice, rows),
        verifier=verifier,
        search_budget=min(Settings.search_budget, kv_tokens // 2),
    )
    choice.reasons["model"] = (
        f"{size.parameters / 1e6:.2f}M parameters, {gb(size.stored)} in the files; {memory.what} has {gb(memory.free)}"
        f" free of {gb(memory.total)}"
    )
    if verifier is not None:
        choice.reasons["verifier"] = f"trained for this model; {gb(extra)} are kept for it"
    return settings


def _cache(
    choice: _Choice, size: ModelSize, dtype: str, room: int, positions: int, memory: Memory, vllm: bool
) -> tuple[int, int, int]:
    """(kv_tokens, context, rows)."""
    each = size.cache(dtype)
    if room > MOST_CONTEXTS * positions:
        room, why = MOST_CONTEXTS * positions, f"{MOST_CONTEXTS} whole contexts"
    else:
        why = f"half of what {memory.what} has left beside the weights"
    kv_tokens = choice.of("kv_tokens", room, f"{gb(room * each)} at {each:,} bytes a token: {why}")
    context = choice.of("context", *context_of(positions, kv_tokens))
    if context > positions:
        raise ValueError(f"--context {context} is more than the {positions} positions of the model; give that or less")
    if context > kv_tokens:
        raise ValueError(f"--context {context} is more than the {kv_tokens} tokens of the key-value cache; give less")
    rows = max(1, min(VLLM_ROWS if vllm else 64, kv_tokens // min(context, ROW)))
    why = f"vLLM's own, where the cache has {ROW} tokens for each" if vllm else UNTIMED
    return kv_tokens, context, choice.of("rows", rows, why)


def context_of(positions: int, kv_tokens: int) -> tuple[int, str]:
    """Context and why: where the cache is small, one whole sequence can run while another is kept."""
    if positions <= kv_tokens // 2:
        return positions, "all positions of the model"
    return max(1, kv_tokens // 2), "half of what the key-value cache holds"


def _dtype(size: ModelSize, room: Mapping[str, int], gpu: bool, enough: int) -> tuple[str, str]:
    """The dtype of the files if it fits; bfloat16 on a GPU, or where float32 would leave no cache."""
    if gpu:
        stored = "float16" if size.dtype == "float16" else "bfloat16"
        return stored, "what GPUs are made for" if stored != size.dtype else "the dtype of the files"
    wide = room["float32"]
    if wide >= enough:
        return "float32", "the dtype of the files" if size.dtype == "float32" else UNTIMED
    if room["bfloat16"] > wide:
        left = f"{max(0, wide):,} tokens of cache" if wide > 0 else "no cache at all"
        return "bfloat16", f"float32 would leave {left}"
    return "float32", "the dtype of the files"


def _too_large(size: ModelSize, dtype: str, memory: Memory, fixed_cost: int, tokens: int) -> str:
    need = fixed_cost + size.weights(dtype) + int(tokens * size.cache(dtype) / SHARE["cpu"])
    small = ((name, int(size.parameters * bits / 8)) for name, bits in (("Q8_0", 8.5), ("Q4_0", 4.5)))
    fits = [f"{name} has about {gb(weights)}" for name, weights in small if 1.1 * weights + LLAMA < memory.free]
    remedy = f"export it as a GGUF and serve that ({fits[0]})" if fits else "free memory"
    return (
        f"the model does not fit: {gb(size.weights(dtype))} of weights in {dtype}, {gb(fixed_cost)} for the process"
        f" and {tokens:,} tokens of key-value cache at {size.cache(dtype):,} bytes need {gb(need)}, and {memory.what}"
        f" has {gb(memory.free)} free of {gb(memory.total)}; {remedy}, ask for a smaller --context or --kv-tokens, or"
        f" give it {gb(max(0, need - memory.free))} more"
    )


def _llama(choice: _Choice, file: Path, verifier: Path | None) -> Settings:
    size, machine = gguf_size(file), choice.machine
    gpu = machine.vram is not None and choice.wishes.device == "cuda"  # the wheel of llama.cpp is for CPUs
    memory = machine.vram if gpu and machine.vram else machine.ram
    each = 2 * size.cache_numbers  # llama.cpp's cache is float16
    extra = folder_size(verifier).weights("float32") if verifier is not None else 0
    fixed_cost = LLAMA + extra + (TORCH if verifier is not None else 0)
    room = int((memory.free - fixed_cost - size.stored) * SHARE["cuda" if gpu else "cpu"]) // each
    positions = size.context or LLAMA_CONTEXT
    wanted = min(max(LEAST, choice.wishes.context or 0), positions)
    if room < wanted:
        need = fixed_cost + size.stored + int(wanted * each / SHARE["cpu"])
        process = "the process" if verifier is None else "the process with its verifier"
        raise ValueError(
            f"{file.name} does not fit: {gb(size.stored)} of weights, {gb(fixed_cost)} for {process} and {wanted:,}"
            f" tokens of key-value cache at {each:,} bytes need {gb(need)}, and {memory.what} has {gb(memory.free)}"
            f" free of {gb(memory.total)}; quantise it further (Q4_0 has about {gb(int(size.parameters * 0.57))}), or"
            f" give it {gb(need - memory.free)} more"
        )
    most = min(positions, LLAMA_CONTEXT, room // 256 * 256)
    whole = "all positions of the model" if most == positions else "what most conversations need"
    context = choice.of("context", most, whole if most < room // 256 * 256 else "as many as the memory holds")
    rows = choice.of("rows", max(1, min(LLAMA_ROWS, room // context)), f"each has its {context:,} tokens for good")
    threads, source = machine.cores
    choice.reasons["model"] = (
        f"{size.parameters / 1e6:.2f}M parameters, {gb(size.stored)} of {size.dtype}; {memory.what} has"
        f" {gb(memory.free)} free of {gb(memory.total)}"
    )
    if verifier is not None:
        choice.reasons["verifier"] = (
            f"trained for the model in this file; {gb(extra)} are kept for it, and {gb(TORCH)} for torch, which runs it"
        )
    kv_tokens = choice.of("kv_tokens", rows * context, f"rows x context: {gb(rows * context * each)}")
    return Settings(
        model=file,
        engine=choice.of("engine", "llamacpp", "the model is a GGUF"),
        device=choice.of("device", "cpu", "llama.cpp's wheel is built for CPUs"),
        dtype=choice.of("dtype", size.dtype, "of the file"),
        context=context,
        kv_tokens=kv_tokens,
        chunk=choice.of("chunk", 512, "llama.cpp's own"),
        rows=rows,
        threads=choice.of("threads", threads, source),
        max_waiting=_waiting(choice, rows),
        verifier=verifier,
        search_budget=min(Settings.search_budget, kv_tokens // 2),
    )


def waiting(rows: int) -> int:
    """Requests that may wait for `rows`."""
    return max(16, 2 * rows)


def _waiting(choice: _Choice, rows: int) -> int:
    return int(choice.of("max_waiting", waiting(rows), "two rounds of all rows, at least 16; one more is answered 429"))


def _engine(gpu: bool, vllm: bool, verifier: bool) -> tuple[EngineKind, str]:
    if not (gpu and vllm):
        return "torch", "a model folder on a GPU, and vLLM is not installed" if gpu else "a model folder, and no GPU"
    if verifier:
        return "torch", "there is a verifier, and vLLM has no search; --engine vllm does without both"
    return "vllm", "vLLM is installed and there is a GPU; searches need --engine torch"


def _check(wishes: Wishes, gguf: bool, machine: Machine) -> None:
    """Raise ValueError for a flag that cannot be followed."""
    for name in ("context", "kv_tokens", "chunk", "rows", "threads"):
        value = getattr(wishes, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: give at least 1, or leave it out")
    if wishes.max_waiting is not None and wishes.max_waiting < 0:
        raise ValueError(f"--max-waiting is {wishes.max_waiting}: give at least 0, or leave it out")
    if wishes.engine is not None and wishes.engine not in get_args(EngineKind):
        raise ValueError(f"--engine {wishes.engine} is unknown; there are {', '.join(get_args(EngineKind))}")
    if wishes.engine == "vllm" and not machine.vllm:
        raise ValueError("--engine vllm, but vLLM is not installed here: pip install vllm, or leave it out")
    if not gguf and wishes.dtype is not None and wishes.dtype not in BYTES:
        raise ValueError(f"--dtype {wishes.dtype} is unknown; there are {', '.join(BYTES)}")
    if gguf and wishes.dtype is not None:
        raise ValueError(f"--dtype {wishes.dtype}: a GGUF is run as it is; choose another file instead")
    if wishes.device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {wishes.device} is unknown; there are cpu, cuda")
    if wishes.device == "cuda" and machine.vram is None:
        raise ValueError("--device cuda, but no GPU is to be seen here by this build of torch; leave it out")


def gb(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
