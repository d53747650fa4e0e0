"""Keys: what an artifact *would be*, known before it is built.

key = sha256(canonical JSON of stage name, stage version, identity config, {role: input digest}), 32 hex characters.
Nothing about the machine enters: no paths, no code hash, no device counts. 128 bits: among 10^12 artifacts two share a
key by accident with probability 10^-15.

Canonical JSON is what makes equal configs equal bytes: keys sorted by code point, no spaces, UTF-8, floats as Python's
shortest `repr` (so 1 and 1.0 differ, and 0.1 is always "0.1"), NaN and infinities refused. Text is not normalised:
a composed and a decomposed "é" are different configs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from registry.errors import RegistryError

KEY_LENGTH = 32
_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")


def is_key(text: str) -> bool:
    """Whether `text` has the form of a full key."""
    return _KEY.fullmatch(text) is not None


def artifact_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of what `stage` makes of `config` and `inputs` (role -> digest). Raises RegistryError for a value that
    has no canonical JSON, naming its field."""
    identity = {"stage": stage, "version": version, "config": config, "inputs": inputs}
    return sha256_text(canonical_json(identity))[:KEY_LENGTH]


def canonical_json(value: Any) -> str:
    """The one spelling of `value` (see above). Raises RegistryError naming the field it cannot spell."""
    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any, where: str = "") -> Any:
    """`value` as dicts, lists, str, int, float, bool and None only; tuples become lists, enums their values."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RegistryError(f"{where or 'value'} is {value!r}: JSON has no such number; use null or a finite one")
        return float(value)
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_name(name, where): plain(item, f"{where}.{name}".lstrip(".")) for name, item in value.items()}
    raise RegistryError(
        f"{where or 'value'} is a {type(value).__name__} ({value!r}): only JSON values can be part of a key or a "
        "manifest; convert it to a string, number, list or mapping"
    )


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise RegistryError(f"{where or 'mapping'} has the key {name!r}: keys must be strings, quote it")
    return _text(name, where)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RegistryError(f"{where or 'value'} is no valid Unicode text: {value!r} ({error.reason})") from error
    return str.__str__(value)
