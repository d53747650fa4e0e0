"""YAML with the file and line of every value, so that an error can point at it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

YamlPath = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number, as YAML 1.2 does; YAML 1.1 makes it a string."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class MalformedYaml(Exception):
    """The file cannot be read as a mapping; `where` is file and line."""

    def __init__(self, where: str, message: str) -> None:
        self.where = where
        super().__init__(message)


class Positions:
    """Where each value of a (merged) YAML document was written."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._at: dict[YamlPath, str] = {}

    def set(self, path: YamlPath, where: str) -> None:
        self._at[path] = where

    def where(self, path: YamlPath) -> str:
        """`file:line` of `path`, or of the nearest enclosing value that is written down."""
        for end in range(len(path), -1, -1):
            if path[:end] in self._at:
                return self._at[path[:end]]
        return self._file

    def merged(self, over: Positions) -> Positions:
        result = Positions(over._file)
        result._at = {**self._at, **over._at}
        return result


def parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=Loader)  # a SafeLoader


def load_yaml(path: Path) -> tuple[dict[str, Any], Positions]:
    """The mapping in `path` and the position of each value. Raises MalformedYaml."""
    positions = Positions(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=Loader)
    except FileNotFoundError as error:
        raise MalformedYaml(str(path), "no such file") from error
    except IsADirectoryError as error:
        raise MalformedYaml(str(path), "a folder; name a recipe's file, such as configs/smoke.yaml") from error
    except OSError as error:
        raise MalformedYaml(str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise MalformedYaml(f"{path}{line}", f"not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(root, yaml.MappingNode):
        raise MalformedYaml(str(path), "expected a mapping at the top")
    _record(root, (), positions, path)
    data = parse_yaml(text)
    return data, positions


def _record(node: yaml.Node, at: YamlPath, positions: Positions, path: Path) -> None:
    positions.set(at, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise MalformedYaml(f"{path}:{key.start_mark.line + 1}", f"key '{key.value}' is given twice")
            seen.add(key.value)
            _record(value, (*at, key.value), positions, path)
            positions.set((*at, key.value), f"{path}:{key.start_mark.line + 1}")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _record(value, (*at, index), positions, path)
