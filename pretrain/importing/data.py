"""From nanotron's data and tokenizer sections to the steps `corpus`, `tokenizer` and `tokens`.

Token folders hold ids under a tokenizer, not text, and lie on somebody's cluster: each becomes a placeholder path that
`acorn plan` refuses until it is filled in. Data sets of the hub are carried over. There is one mixture for the whole
run and no weights: what a later data stage or a weight would have changed is said.
"""

from __future__ import annotations

from typing import Any

from pretrain.importing.original import Became, Original, short

PLACEHOLDER = "./FILL-IN"
FILL_IN = "FILL-IN"
TEMPLATE = "corpus/chat_template.jinja"
FOLDERS = ("dataset_folder", "nanoset_folder")
HUB_FIELDS = {"hf_dataset_config_name": "name", "hf_dataset_splits": "split", "text_column_name": "text_field"}
SHARES = "the corpus step takes each source whole; choose shares with `limit`"
SMALLEST_VOCABULARY = 512

Source = dict[str, Any]


def corpus(original: Original) -> dict[str, Any]:
    """Config of the `text` stage: the sources of all data stages, each once, in the file's order."""
    sources: list[Source] = []
    stages = original.value("data_stages", [])
    if not isinstance(stages, list):
        raise original.refusal("data_stages", f"{short(repr(stages))} is not a list of stages; correct it")
    places = ["data", *(f"data_stages.{index}.data" for index in range(len(stages)))]
    for place in places:
        for source in _sources(original, f"{place}.dataset"):
            if source not in sources:
                sources.append(source)
    for place in places:
        _tell_stage(original, place, several=len(sources) > 1)
    return {"license": FILL_IN, "text": sources or [{"path": f"{PLACEHOLDER}/text"}]}


def _sources(original: Original, at: str) -> list[Source]:
    """The sources of one data stage."""
    found: list[Source] = []
    for name in FOLDERS:
        for folder in _names(original, f"{at}.{name}"):
            found.append({"path": _placeholder(folder), "label": _label(folder)})
        ids = f"by a placeholder under {PLACEHOLDER}/: token ids cannot be imported; fill in the text behind them"
        _tell_names(original, f"{at}.{name}", "replaced", ids)
    options: Source = {}
    for name, field in HUB_FIELDS.items():
        if isinstance(original.value(f"{at}.{name}"), list):
            original.tell(
                f"{at}.{name}", "left out", "a text source takes one: repeat the source for each", changes=True
            )
        else:
            original.carry(f"{at}.{name}", str, options, field, f"as the text source's {field}")
    for path in _names(original, f"{at}.hf_dataset_or_datasets"):
        found.append({"path": path, "label": _label(path), **options})
    _tell_names(original, f"{at}.hf_dataset_or_datasets", "carried over", "as a source of the corpus step")
    return found


def _tell_names(original: Original, path: str, became: Became, why: str) -> None:
    """The fate of what `_names` reads; weights by name are lost."""
    value = original.value(path)
    weighted = isinstance(value, dict) and len(value) > 1
    original.tell(path, became, f"{why}; its weight is lost: {SHARES}" if weighted else why, changes=weighted)


def _placeholder(folder: str) -> str:
    parts = (folder.partition("://")[2] or folder).split("/")
    return "/".join([PLACEHOLDER, *(part for part in parts if part not in ("", ".", ".."))])


def _names(original: Original, path: str) -> list[str]:
    """Data sets given as a name, a list of names, or weights by name."""
    value = original.value(path, [])
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise original.refusal(path, f"{short(repr(value))} names no data: expected a name, a list, or weights by name")
    return names


def _label(name: str) -> str:
    """The last two parts of a path: `tokenized` alone says little."""
    return "-".join(name.rstrip("/").split("/")[-2:])


def _tell_stage(original: Original, place: str, several: bool) -> None:
    """The fates of what is around the sources in one data stage."""
    original.tell(f"{place}.dataset.dataset_weights", "left out", SHARES, changes=several)
    original.tell(f"{place}.dataset.dataset_read_path", "left out", "a copy of dataset_folder on a node's own disk")
    original.tell(f"{place}.dataset", "left out", "settings of a data loader that acorn does not use")
    original.tell(f"{place}.seed", "left out", "the pretrain step's seed orders the data, too")
    original.tell(f"{place}.num_loading_workers", "left out", "token files are read without workers")
    stage = place.removesuffix(".data")
    original.tell(f"{stage}.name", "left out", "there are no data stages in nanotron 0.4")
    later = original.value(f"{stage}.start_training_step", 1) != 1
    one = "there are no data stages in nanotron 0.4: one mixture of all of them from the first step to the last"
    original.tell(f"{stage}.start_training_step", "left out", one, changes=later)


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
