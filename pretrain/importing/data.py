"""From nanotron's data and tokenizer sections to the steps `corpus`, `tokenizer` and `tokens`, and to `data_stages`.

Token folders hold ids under a tokenizer, not text, and lie on somebody's cluster: each becomes a placeholder path that
`acorn plan` refuses until it is filled in. Data sets of the hub are carried over. Sources with weights become token
sets of their own, one corpus and one tokens step each, and the weights go into `data_stages`. Sources without weights
are read in proportion to their size, as nanotron does: one corpus of them all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pretrain.config import OTHER_INPUTS, TOKENS
from pretrain.importing.original import Became, Original, short

PLACEHOLDER = "./FILL-IN"
FILL_IN = "FILL-IN"
TEMPLATE = "corpus/chat_template.jinja"
FOLDERS = ("dataset_folder", "nanoset_folder")
HUB_FIELDS = {"hf_dataset_config_name": "name", "hf_dataset_splits": "split", "text_column_name": "text_field"}
SMALLEST_VOCABULARY = 512

Source = dict[str, Any]


@dataclass
class Data:
    """The token sets of a run, each a list of text sources, by the role that `pretrain` reads them under."""

    sets: dict[str, list[Source]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    """`data_stages` of the pretrain step; none where one set serves from the first step to the last."""

    def steps(self) -> dict[str, Any]:
        """The corpus of each set, the tokenizer's place (None), and the tokens of each set."""
        corpora = {
            corpus_step(role): {"stage": "text", "config": {"license": FILL_IN, "text": sources}}
            for role, sources in self.sets.items()
        }
        inputs = {role: {"corpus": corpus_step(role), "tokenizer": "tokenizer"} for role in self.sets}
        tokens = {tokens_step(role): {"stage": "tokens", "inputs": each} for role, each in inputs.items()}
        return {**corpora, "tokenizer": None, **tokens}

    def inputs(self) -> dict[str, str]:
        """Of the pretrain step."""
        return {**{role: tokens_step(role) for role in self.sets}, "tokenizer": "tokenizer"}


def corpus_step(role: str) -> str:
    return "corpus" if role == TOKENS else f"{role}-corpus"


def tokens_step(role: str) -> str:
    return TOKENS if role == TOKENS else f"{role}-tokens"


def read_data(original: Original, train_steps: int) -> Data:
    """All token sets and stages of the file, in its order. Raises CannotImport for stages that nanotron refuses."""
    data = Data()
    places = _places(original, train_steps)
    for place, start in places:
        weights: dict[str, float] = {}
        for sources, weight in _weighted(original, f"{place}.dataset"):
            role = _role_of(data, sources)  # a source that is listed twice is one set
            weights[role] = float(Decimal(str(weights.get(role, 0))) + Decimal(str(weight)))  # 0.1 + 0.2 = 0.3
        name = original.value(f"{place.removesuffix('.data')}.name") if place != "data" else None
        data.stages.append({"name": str(name or f"stage {start}"), "start_training_step": start, "data": weights})
    mixed = len(data.sets) > 1
    for place, _ in places:
        _tell_place(original, place, mixed)
    if not mixed:
        data.stages.clear()
    data.sets = data.sets or {TOKENS: [{"path": f"{PLACEHOLDER}/text"}]}
    return data


def _places(original: Original, train_steps: int) -> list[tuple[str, int]]:
    """(path of the data section, first step) of each stage that comes to be trained, in the order of their steps."""
    stages = original.value("data_stages", [])
    if not isinstance(stages, list):
        raise original.refusal("data_stages", f"{short(repr(stages))} is not a list of stages; correct it")
    if not stages:
        return [("data", 1)] if original.value("data.dataset") else []
    original.tell("data", "left out", "data_stages say what is read")
    paths: dict[int, str] = {}
    for path in (f"data_stages.{index}" for index in range(len(stages))):
        start = original.count(f"{path}.start_training_step", default=1)
        if start in paths:
            raise original.refusal(f"{path}.start_training_step", f"{start} is another stage's, too; correct it")
        paths[start] = path
    first = min(paths)
    if first != 1:
        what = f"{first} leaves the steps before it without data; begin at 1"
        raise original.refusal(f"{paths[first]}.start_training_step", what)
    for start, path in paths.items():
        if start > train_steps:
            original.tell(path, "left out", f"it begins after the last step, {train_steps}")
    return [(f"{paths[start]}.data", start) for start in sorted(paths) if start <= train_steps]


def _weighted(original: Original, at: str) -> list[tuple[list[Source], float]]:
    """The token sets of one stage and their weights. Raises CannotImport for weights that say nothing."""
    sources, by_name = _sources(original, at)
    path = f"{at}.dataset_weights"
    listed = original.value(path)
    weights = by_name if listed is None else listed
    if sources and isinstance(weights, list) and weights and not any(weights):
        message = "all weights are 0, so nothing would be read; give one set a weight above 0"
        raise original.refusal(at if listed is None else path, message)
    if weights is None or len(sources) < 2:
        return [(sources, 1.0)] if sources else []
    if not isinstance(weights, list) or len(weights) != len(sources):
        raise original.refusal(path, f"{short(repr(weights))} is no list of {len(sources)} weights; correct it")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise original.refusal(path if listed else at, f"{weight!r} is no weight; give a number of at least 0")
    return [([source], float(weight)) for source, weight in zip(sources, weights, strict=True) if weight > 0]


def _role_of(data: Data, sources: list[Source]) -> str:
    """The role of a token set: that of an equal one, `tokens` for the first, else a name made of its first label."""
    for role, others in data.sets.items():
        if others == sources:
            return role
    base = re.sub(r"[^a-z0-9]+", "-", str(sources[0]["label"]).lower()).strip("-") or "set"
    taken = {*data.sets, *OTHER_INPUTS, TOKENS}
    names = [base, *(f"{base}-{number}" for number in range(2, len(taken) + 3))]
    role = next(name for name in names if name not in taken) if data.sets else TOKENS
    data.sets[role] = sources
    return role


def _sources(original: Original, at: str) -> tuple[list[Source], list[Any] | None]:
    """The sources of one data stage, and their weights if they are given by name."""
    found: list[Source] = []
    weights: list[Any] = []
    for name in FOLDERS:
        names, given = _names(original, f"{at}.{name}")
        found += [{"path": _placeholder(folder), "label": _label(folder)} for folder in names]
        weights += given
        ids = f"by a placeholder under {PLACEHOLDER}/: token ids cannot be imported; fill in the text behind them"
        _tell_names(original, f"{at}.{name}", "replaced", ids)
    options: Source = {}
    for name, option in HUB_FIELDS.items():
        if isinstance(original.value(f"{at}.{name}"), list):
            original.tell(
                f"{at}.{name}", "left out", "a text source takes one: repeat the source for each", changes=True
            )
        else:
            original.carry(f"{at}.{name}", str, options, option, f"as the text source's {option}")
    names, given = _names(original, f"{at}.hf_dataset_or_datasets")
    found += [{"path": path, "label": _label(path), **options} for path in names]
    _tell_names(original, f"{at}.hf_dataset_or_datasets", "carried over", "as a source of a corpus step")
    weights += given
    return found, weights if weights and len(weights) == len(found) else None


def _tell_names(original: Original, path: str, became: Became, why: str) -> None:
    """The fate of what `_names` reads."""
    weighted = isinstance(original.value(path), dict)
    original.tell(path, became, f"{why}; the weights go into data_stages" if weighted else why)


def _placeholder(folder: str) -> str:
    parts = (folder.partition("://")[2] or folder).split("/")
    return "/".join([PLACEHOLDER, *(part for part in parts if part not in ("", ".", ".."))])


def _names(original: Original, path: str) -> tuple[list[str], list[Any]]:
    """Data sets given as a name, a list of names, or weights by name; and those weights."""
    value = original.value(path, [])
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise original.refusal(path, f"{short(repr(value))} names no data: expected a name, a list, or weights by name")
    return names, list(value.values()) if isinstance(value, dict) else []


def _label(name: str) -> str:
    """The last two parts of a path: `tokenized` alone says little."""
    return "-".join(name.rstrip("/").split("/")[-2:])


def _tell_place(original: Original, place: str, mixed: bool) -> None:
    """The fates of what is around the sources in one data stage."""
    stage = place.removesuffix(".data")
    if mixed:
        original.tell(f"{place}.dataset.dataset_weights", "carried over", "into data_stages; sets of weight 0 are not")
        original.tell(f"{stage}.name", "carried over", "into data_stages")
        original.tell(f"{stage}.start_training_step", "carried over", "into data_stages")
    else:
        for path in (f"{place}.dataset.dataset_weights", f"{stage}.name", f"{stage}.start_training_step"):
            original.tell(path, "left out", "there is one set of tokens from the first step to the last")
    original.tell(f"{place}.dataset.dataset_read_path", "left out", "a copy of dataset_folder on a node's own disk")
    original.tell(f"{place}.dataset", "left out", "settings of a data loader that acorn does not use")
    original.tell(f"{place}.seed", "left out", "the pretrain step's seed orders the data, too")
    original.tell(f"{place}.num_loading_workers", "left out", "token files are read without workers")


def tokenizer(original: Original) -> dict[str, Any]:
    """Config of the `tokenizer` stage: the one that the file names, else one trained to the model's vocabulary."""
    name = original.typed("tokenizer.tokenizer_name_or_path", str)
    size = "model.model_config.vocab_size"
    if name:
        original.tell("tokenizer.tokenizer_name_or_path", "carried over", "as the tokenizer step's pretrained")
        config = {"pretrained": name}
        original.carry("tokenizer.tokenizer_revision", str, config, "revision", "as the tokenizer step's revision")
        # Base models' tokenizers seldom have a chat template with generation markers, which the step insists on.
        return {**config, "template": TEMPLATE}
    entries = original.typed(size, int) or 0
    if entries < SMALLEST_VOCABULARY:
        original.tell(size, "replaced", "by acorn's default: too small for a byte-level tokenizer", changes=True)
        return {}
    original.tell(size, "carried over", "as the tokenizer step's vocab_size: the file names no tokenizer")
    return {"vocab_size": entries}
