"""K- and I-quants: llama.cpp's own quantiser in this process, through llama-cpp-python (the optional extra `quants`).

They want rows that are multiples of 256: llama.cpp takes another type for a matrix whose rows are not (widths 576 and
960 of SmolLM2 become mostly 5-bit), so the histogram of tensor types and the true bits per weight are read back from
the file. `importance` is the mean square of each input of a matrix over calibration text (`export.importance`); the
smallest types cannot do without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.gguf import Written, read_written
from export.huggingface import ExportError

if TYPE_CHECKING:
    import numpy as np

MISSING = (
    "needs llama.cpp's own quantiser, which is not installed: pip install 'acorn-lm[quants]' (llama-cpp-python, which "
    "is compiled: about 15 minutes on two cores)"
)


def installed() -> bool:
    """Whether llama-cpp-python is there; it is not imported to see."""
    return find_spec("llama_cpp") is not None


def quantise(
    source: Path, target: Path, kind: str, importance: Mapping[str, np.ndarray], threads: int, verbose: bool = False
) -> Written:
    """Write the f32 GGUF `source` as `kind` (`"q4_k_m"`, `"iq3_xs"`, ...). The bytes do not depend on `threads`.

    `importance`: GGUF tensor name -> float32 [row]; may be empty. Raises ExportError with llama.cpp's refusal.
    """
    if not installed():
        raise ExportError(f"type {kind!r} {MISSING}")
    import llama_cpp

    said: list[str] = []
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    kept = _importance(llama_cpp, importance)
    if importance:
        parameters.imatrix = ctypes.cast(kept, type(parameters.imatrix))
    callback = llama_cpp.llama_log_callback(lambda level, text, _: said.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    finally:  # the callback ends with this function
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))
    if verbose:
        print("".join(said))
    if failed:
        target.unlink(missing_ok=True)
        reason = ["it says nothing", *"".join(said).strip().splitlines()][-1]
        raise ExportError(f"llama.cpp does not quantise to {kind}: {reason}")
    return read_written(target)


def _importance(llama_cpp: Any, importance: Mapping[str, np.ndarray]) -> Any:
    """llama.cpp's array, ended by an entry without a name. It points into `importance`, which must live as long."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    return entries
