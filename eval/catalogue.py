"""Named suites: lists of tasks with the format they are put in, as YAML under eval/suites.

A suite's content, not its name, is part of an evaluation's key: an edited file makes the step stale.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

SUITES = Path(__file__).parent / "suites"


def suite_names() -> list[str]:
    return sorted(file.stem for file in SUITES.glob("*.yaml"))


def read_suite(name: str) -> dict[str, Any]:
    """The content of the suite `name`, or of the file of that path (`.yaml`, `.yml`).

    Raises ValueError for one that is not there, with the nearest name, and for a file that is no mapping.
    """
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = get_close_matches(name, suite_names(), 1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(suite_names())}, or a path to a .yaml"
        raise ValueError(f"no suite is called '{name}': {hint}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"suite {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"suite {file} holds no mapping: it needs `tasks`, a list, and may have format and define")
    return {"name": file.stem, **content}
