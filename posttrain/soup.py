"""The stage `soup`: the weighted average of models of one architecture, tensor by tensor.

No model is built and no torch imported: tensors are read from the mapped safetensors files in pieces of
`PIECE` elements, summed in float64 and written in the first model's type, so memory does not grow with the models.
The order of the sum is that of the roles' names, so the bytes depend on weights and models alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from acorn.stage import Job
from acorn.tokenizers import TOKENIZER_FILES, copy_tokenizer

PIECE = 1 << 22
NAMES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""safetensors' floating-point types, and numpy's; bfloat16 is the upper half of a float32."""
NOT_COMPARED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Entries of config.json in which models of one architecture may differ."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file."""

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def soup(job: Job) -> dict[str, float]:
    """Average the input models. Raises ValueError, with the difference, for models that do not fit each other."""
    roles = sorted(job.inputs)
    given = job.config.weights or dict.fromkeys(roles, 1.0)
    total = sum(given.values())
    shares = {role: given[role] / total for role in roles}
    models = {role: places(job.inputs[role]) for role in roles}
    first = roles[0]
    for other in roles[1:]:
        require_same(job.inputs[first], models[first], job.inputs[other], models[other], other)
    source = job.inputs[first]
    for name in ("config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, job.out / name)
    copy_tokenizer(source, job.out)
    write(job.out / "model.safetensors", models, shares)
    parameters = sum(place.elements for place in models[first].values())
    return {"parameters": parameters, **{f"soup/share/{role}": share for role, share in shares.items()}}


def places(folder: Path) -> dict[str, Place]:
    """Every tensor of a model folder, by name. Raises FileNotFoundError for a folder without safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors file")
    found = {}
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin = 8 + length + entry["data_offsets"][0]
                found[name] = Place(file, entry["dtype"], tuple(entry["shape"]), begin)
    return found


def require_same(one: Path, ours: Mapping[str, Place], other: Path, theirs: Mapping[str, Place], role: str) -> None:
    """ValueError unless two models have one architecture, one tokenizer and the same tensors."""
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    a, b = ({name: value for name, value in config.items() if name not in NOT_COMPARED} for config in configs)
    if differing := sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)):
        name = differing[0]
        raise ValueError(f"{role}: its config.json has {name} {b.get(name)!r}, the first model's {a.get(name)!r}")
    for name in TOKENIZER_FILES[:1]:
        if (one / name).read_bytes() != (other / name).read_bytes():
            raise ValueError(f"{role}: its {name} is not the first model's: their rows mean different tokens")
    if strangers := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"{role}: tensor {strangers[0]} is in one of the models only")
    for name, place in ours.items():
        if place.shape != theirs[name].shape:
            raise ValueError(f"{role}: {name} is {theirs[name].shape}, the first model's {place.shape}")
        for dtype in (place.dtype, theirs[name].dtype):
            if dtype not in NAMES:
                raise ValueError(f"{role}: {name} is {dtype}; only {', '.join(NAMES)} can be averaged")


def write(path: Path, models: Mapping[str, Mapping[str, Place]], shares: Mapping[str, float]) -> None:
    """The averaged tensors as one safetensors file, in the first model's types."""
    first = next(iter(models.values()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, place in sorted(first.items()):
        size = place.elements * np.dtype(NAMES[place.dtype]).itemsize
        header[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(first):
            _average(out, [(models[role][name], share) for role, share in shares.items()])


def _average(out: BinaryIO, parts: list[tuple[Place, float]]) -> None:
    dtype = parts[0][0].dtype
    for pieces in zip(*(_pieces(place) for place, _ in parts), strict=True):
        total = np.zeros(len(pieces[0]), dtype=np.float64)
        for piece, (_, share) in zip(pieces, parts, strict=True):
            total += share * piece
        out.write(_encoded(total, dtype).tobytes())


def _pieces(place: Place) -> Iterator[NDArray[np.float64]]:
    """The tensor's elements in order, `PIECE` at a time."""
    kind = np.dtype(NAMES[place.dtype])
    for at in range(0, place.elements, PIECE):
        count = min(PIECE, place.elements - at)
        stored = np.fromfile(place.file, dtype=kind, count=count, offset=place.begin + at * kind.itemsize)
        if place.dtype == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        yield stored.astype(np.float64)


def _encoded(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """`values` in a stored type, rounded to nearest even."""
    if dtype != "BF16":
        return values.astype(NAMES[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded
