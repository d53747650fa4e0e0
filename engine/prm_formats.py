"""How the known process reward models (PRMs) write a solution down, and where in it they score a step. No torch here.

A format is a layout (where the score of a step stands) and a head (what is read there):

| layout | a step in the model's text | score read at |
|---|---|---|
| `delimiter` | step + delimiter; the last one ends with the end of turn | the step's last token |
| `separator` | step + one special token (`<extra_0>`, Qwen2.5-Math-PRM) | that token |
| `turns` | a user's turn, answered by the assistant's `+` (RLHFlow) | the token before that answer |

| head | score |
|---|---|
| `scalar` | sigmoid of one logit |
| `two_class` | softmax of two logits, class 1 |
| `tokens` | softmax of the language model's logits of a good and a bad token, the good one |

Our own artifacts are `delimiter` with a `scalar` head, and say so in `prm.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

PRM_FILE = "prm.json"
KINDS = ("auto", "token_classification", "qwen", "rlhflow")
_QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
"""Of Qwen2.5-Math-PRM's model card."""
_LETTER = "A"
"""Stands for the next step where only its beginning matters."""

Layout = Literal["delimiter", "separator", "turns"]
Head = Literal["scalar", "two_class", "tokens"]
End = Literal["turn", "step", "limit"]


@dataclass(frozen=True)
class PrmFormat:
    """What `prm.json` says; for models without that file, what `recognise` finds."""

    layout: Layout
    head: Head
    step_delimiter: str = "\n\n"
    """What separates the steps of the *generator*. A `delimiter` model reads it; the others get steps without it."""
    separator: str | None = None
    """Special token behind each step (layout `separator`)."""
    good: str = "+"
    bad: str = "-"
    """Tokens whose logits are the score (head `tokens`)."""
    system: str | None = None
    """System prompt that the model was trained with; used where its template is applied anew."""
    likelihood: bool = False
    """The model's own log-probabilities of the step's tokens are part of the score (`engine.prm_likelihood`)."""
    end_of_turn: str | None = None
    """Token behind the last step (layout `delimiter`)."""

    def save(self, folder: Path, **more: Any) -> None:
        """Write `prm.json`, with further facts beside."""
        (folder / PRM_FILE).write_text(json.dumps({**asdict(self), **more}, indent=1) + "\n")


@dataclass(frozen=True)
class EncodedSteps:
    """A completion as the generator emits it."""

    ids: list[int]
    ends: list[int]
    """Index just behind the last token of each step; the last is `len(ids)`."""

    def step(self, index: int) -> list[int]:
        """Token ids of one step, delimiter included."""
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]


def encode_steps(
    tokenizer: Any, steps: Sequence[str], delimiter: str, end_of_turn: int, end: End = "turn"
) -> EncodedSteps:
    """Tokens of `steps` joined by `delimiter`. The last one ends as `end` says: with `end_of_turn`, with the delimiter
    (`step`: more would have followed), or with nothing (`limit`: it was cut off).

    The whole text is tokenised once and cut by offsets: tokenised alone, a step could get other ids than a generator
    emits (GPT-2's rule makes "\\n\\n" two tokens before a letter and one at the end of a text). Raises ValueError for
    an empty step, one that holds the delimiter, and a delimiter whose end lies inside a token.
    """
    if not steps:
        raise ValueError("a completion without steps; leave such rows out")
    for number, step in enumerate(steps):
        if not step.strip():
            raise ValueError(f"step {number} is empty; leave empty steps out where the rows are made")
        if delimiter in step:
            raise ValueError(f"step {number} contains the step delimiter {delimiter!r}: {step!r}; split it there")
    boundaries = list(accumulate(len(step) + len(delimiter) for step in steps))
    text = delimiter.join(steps)
    if end == "step":
        text += delimiter + _LETTER
    else:
        boundaries[-1] = len(text)
    ids, ends = cut(tokenizer, text, boundaries, delimiter)
    if end == "turn":
        return EncodedSteps([*ids, end_of_turn], [*ends[:-1], ends[-1] + 1])
    return EncodedSteps(ids[: ends[-1]], ends)


def cut(tokenizer: Any, text: str, boundaries: Sequence[int], delimiter: str) -> tuple[list[int], list[int]]:
    """Ids of `text`, and for each character boundary the number of tokens before it.

    Raises ValueError, naming the tokens, where a token reaches over a boundary.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    counts, token = [], 0
    for boundary in boundaries:
        while token < len(ids) and offsets[token][1] <= boundary:
            token += 1
        over = token < len(ids) and offsets[token][0] < boundary
        # Byte-level tokenizers leave leading blanks out of the offsets; the text of the tokens does not lie.
        blank = delimiter[-1:] in (" ", "\t") and boundary < len(text)
        if over or (blank and not tokenizer.decode(ids[max(0, token - 8) : token]).endswith(delimiter)):
            near = tokenizer.convert_ids_to_tokens(ids[max(0, token - 2) : token + 2])
            raise ValueError(
                f"the tokenizer merges the end of the step delimiter {delimiter!r} into what follows, so a step has no "
                f"last token of its own: tokens {near} around {text[max(0, boundary - 12) : boundary + 8]!r}; "
                "choose a `step_delimiter` that ends where a token ends, such as '\\n\\n'"
            )
        counts.append(token)
    return ids, counts


def encode_prompt(tokenizer: Any, prompt: str | Sequence[dict[str, str]]) -> list[int]:
    """Ids of a prompt: a list of messages through the chat template with generation prompt, a string as it is.

    Raises ValueError for messages where the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        text = prompt
    elif tokenizer.chat_template is None:
        raise ValueError("the prompt is a list of messages, but the tokenizer has no chat template; give a string")
    else:
        text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def recognise(
    folder: Path,
    kind: str,
    tokenizer: Any,
    step_delimiter: str | None = None,
    separator: str | None = None,
    system: str | None = None,
) -> PrmFormat:
    """The format of a model folder: what `prm.json` says, else what weights and vocabulary show for `kind`.

    Arguments given overrule what was found. Raises ValueError for a folder that fits no layout, or not `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    form = _stated(folder) if kind == "auto" else None
    if form is None:
        form = _shown(folder, kind, tokenizer, separator)
    form = replace(
        form,
        step_delimiter=form.step_delimiter if step_delimiter is None else step_delimiter,
        separator=form.separator if separator is None else separator,
        system=form.system if system is None else system,
    )
    if form.layout == "separator":
        single_id(tokenizer, form.separator or "", "step token")
    return form


def _stated(folder: Path) -> PrmFormat | None:
    path = folder / PRM_FILE
    if not path.is_file():
        return None
    stated = json.loads(path.read_text())
    known = {one.name for one in fields(PrmFormat)}
    form = PrmFormat(**{name: value for name, value in stated.items() if name in known})
    if form.layout not in get_args(Layout) or form.head not in get_args(Head):
        raise ValueError(
            f"{path} has layout {form.layout!r} and head {form.head!r}; known are the layouts "
            f"{', '.join(get_args(Layout))} and the heads {', '.join(get_args(Head))}"
        )
    return form


def _shown(folder: Path, kind: str, tokenizer: Any, separator: str | None) -> PrmFormat:
    stored = tensor_shapes(folder)
    name = next((name for name in ("score.2", "score", "classifier") if f"{name}.weight" in stored), None)
    found = {"score.2": "qwen", "score": "token_classification", "classifier": "token_classification"}.get(name or "")
    if found is None and {"+", "-"} <= tokenizer.get_vocab().keys():
        found = "rlhflow"
    if found is None or kind not in ("auto", found):
        shown = f"weights like a {found} model" if found else "neither a scoring head nor answer tokens '+' and '-'"
        raise ValueError(
            f"{folder} is no process reward model {'of a known layout' if kind == 'auto' else f'of kind {kind}'}: it "
            f"has {shown}; give a folder with a {PRM_FILE} (stage `prm` writes one), with a head `score` or "
            "`classifier` of 1 or 2 labels, or a causal model trained to answer '+' or '-'"
        )
    if found == "rlhflow":
        return PrmFormat("turns", "tokens")
    labels = stored[f"{name}.weight"][1][0]
    if labels > 2:
        raise ValueError(
            f"the head in {folder} has {labels} labels; a step's score needs 1 (scalar) or 2 (wrong, right)"
        )
    head: Head = "scalar" if labels == 1 else "two_class"
    if found == "qwen":
        return PrmFormat("separator", head, separator=separator or "<extra_0>", system=_QWEN_SYSTEM)
    return PrmFormat("separator" if separator else "delimiter", head, separator=separator)


def single_id(tokenizer: Any, token: str, what: str) -> int:
    """Id of a token. Raises ValueError where the vocabulary has it not as one."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(
            f"the PRM's tokenizer has no single token for its {what} {token!r}, so there is no place to read a score; "
            "name the token that the model was trained with (`separator`), or use the tokenizer files it came with"
        )
    return int(found)


def tensor_shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """name -> (file, shape) of every tensor in a folder, from the safetensors headers. Raises FileNotFoundError."""
    stored: dict[str, tuple[str, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        stored |= {name: (path.name, one["shape"]) for name, one in header.items() if name != "__metadata__"}
    if not stored:
        raise FileNotFoundError(f"{folder} holds no *.safetensors; pickled weights are not read: convert them first")
    return stored
