"""The process reward models of a worker: loaded when a search first asks for one, and kept."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.limits import ram
from serve.settings import Settings
from serve.sizes import folder_size
from serve.zero import gb

if TYPE_CHECKING:
    from engine.prm import TorchVerifier

KEPT = 2
"""Loaded ones; of the ones that were used last."""
DELIMITER = "\n\n"
"""Of steps, where a verifier does not say: what every stage's default is."""


class Verifiers:
    """By ref. Requests may name artifacts of the registry alone: no path, nothing that was not made as a verifier."""

    def __init__(self, settings: Settings, tokenizer: Any, announce: Callable[[], None]) -> None:
        """`announce` is called before one is loaded."""
        self._settings, self._tokenizer, self._announce = settings, tokenizer, announce
        self._loaded: OrderedDict[Path, TorchVerifier] = OrderedDict()

    def find(self, ref: str | None) -> Path:
        """The folder of `ref`, or of the model's own verifier. Raises ValueError if there is none."""
        if ref is None:
            if self._settings.verifier is None:
                raise ValueError("search.verifier: none was trained for this model; name one")
            return self._settings.verifier
        from registry import Registry, RegistryError

        if self._settings.home is None:
            raise ValueError("search.verifier: this server has no registry to look one up; leave it out")
        registry = Registry(self._settings.home)
        try:
            artifact = registry.get(ref)
        except RegistryError as error:
            raise ValueError(f"search.verifier: {error}") from error
        if artifact.manifest.kind != "prm":
            raise ValueError(f"search.verifier: {ref} is a {artifact.manifest.kind}, not a prm; name one of that kind")
        return artifact.path

    def load(self, folder: Path) -> TorchVerifier:
        """Raises ValueError for one that does not fit (this memory, or the model's tokenizer) or cannot be read."""
        from engine.prm import load_verifier

        if folder not in self._loaded:
            if len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
            device = self._settings.device
            if device == "cpu" and (need := folder_size(folder).weights("float32")) > (memory := ram()).free:
                raise ValueError(f"search.verifier needs {gb(need)}, and {memory.what} has {gb(memory.free)} free")
            self._announce()
            try:
                self._loaded[folder] = load_verifier(
                    folder,
                    policy_tokenizer=self._tokenizer,
                    step_delimiter=None,
                    device=device,
                    dtype="float32" if device == "cpu" else None,
                    chunk=self._settings.chunk,
                )
            except (OSError, RuntimeError) as error:  # of this search alone: the others run on
                raise ValueError(f"search.verifier cannot be loaded: {error}") from error
        self._loaded.move_to_end(folder)
        return self._loaded[folder]


def delimiter_of(folder: Path | None, asked: str | None) -> str:
    """What ends a step: the verifier's own. Raises ValueError where `asked` is another."""
    own = None
    if folder is not None and (folder / "prm.json").exists():
        own = json.loads((folder / "prm.json").read_text(encoding="utf-8")).get("step_delimiter")
    if own is not None and asked not in (None, own):
        raise ValueError(
            f"search.step_delimiter is {asked!r}, but the verifier was trained on steps that end with {own!r}; leave it"
            " out"
        )
    return own or asked or DELIMITER
