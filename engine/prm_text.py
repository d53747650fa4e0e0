"""From a generator's token ids to a process reward model's: the text of a solution as the model was trained to read it.

Where both share tokenizer and template, ids pass through untouched (`PassThrough`). Else prompt and steps are decoded
with the generator's tokenizer and written anew; the whole text is tokenised each time, so the ids are those of a model
card's own example, and a verifier feeds what its cache lacks. The price is tokenising the text so far at each step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol

from engine.prm_formats import End, PrmFormat, encode_prompt, encode_steps

Messages = list[dict[str, str]]
_NOTHING = "..."
"""Written for a step of white space alone, which the layout has no place for; the model may judge it."""


class Writer(Protocol):
    """Ids for the model, given ids of the generator. `ids` ends where the last step is scored."""

    def ids(self, prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
        """Of the whole text; without steps what every continuation of the prompt begins with (a guess is allowed)."""


class PassThrough:
    """The generator's ids are the model's."""

    def ids(self, prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
        return [*prompt, *(token for step in steps for token in step)]


class Rewriter:
    """Decodes with the generator's tokenizer, writes with the model's; derived classes know the layout."""

    def __init__(self, tokenizer: Any, policy: Any, form: PrmFormat) -> None:
        self.tokenizer, self.form = tokenizer, form
        self._policy, self._reader = policy, PromptReader(policy)

    def ids(self, prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
        raise NotImplementedError

    def messages(self, prompt: Sequence[int]) -> Messages:
        """The conversation in a prompt, under the system prompt that the model was trained with, if it had one."""
        found = self._reader.messages(prompt)
        if self.form.system is None:
            return found
        return [{"role": "system", "content": self.form.system}, *(one for one in found if one["role"] != "system")]

    def text(self, step: Sequence[int]) -> str:
        """Text of a step, without the delimiter and special tokens."""
        text = str(self._policy.decode(list(step), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return text.removesuffix(self.form.step_delimiter).strip()

    def end(self, step: Sequence[int]) -> End:
        """How a step of the generator ended."""
        if step[-1] in self._policy.all_special_ids:
            return "turn"
        text = str(self._policy.decode(list(step), clean_up_tokenization_spaces=False))
        return "step" if text.endswith(self.form.step_delimiter) else "limit"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def render(self, messages: Messages) -> str:
        """The model's template over `messages`, up to where the assistant starts."""
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the PRM's tokenizer has no chat template, and its tokenizer or template is not the generator's, so "
                "the prompt cannot be written for it; use a PRM trained from this generator's tokenizer"
            )
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


class Delimited(Rewriter):
    """Layout `delimiter`: the steps joined by the delimiter, each scored at its last token."""

    def ids(self, prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
        start = encode_prompt(self.tokenizer, self._prompt(prompt))
        if not steps:
            return start
        texts = [text or _NOTHING for text in map(self.text, steps)]
        end_of_turn = self.tokenizer.convert_tokens_to_ids(self.form.end_of_turn or self.tokenizer.eos_token)
        return (
            start + encode_steps(self.tokenizer, texts, self.form.step_delimiter, end_of_turn, self.end(steps[-1])).ids
        )

    def _prompt(self, prompt: Sequence[int]) -> str | Messages:
        messages = self.messages(prompt)
        if self.tokenizer.chat_template is None and len(messages) == 1 and self._policy.chat_template is None:
            return messages[0]["content"]  # neither knows turns: a plain prompt stays one
        self.render(messages)
        return messages


class Separated(Rewriter):
    """Layout `separator`: a special token behind each step, scored there (Qwen2.5-Math-PRM's model card)."""

    def ids(self, prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
        mark = self.form.separator or ""
        return self.encode(self.render(self.messages(prompt)) + "".join(self.text(step) + mark for step in steps))


class Turns(Rewriter):
    """Layout `turns`: each step a user's turn, the first behind the question; scored where the answer would stand."""

    def ids(self, prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
        *before, question = self.messages(prompt)
        texts = [self.text(step) for step in steps] or ["A"]
        turns = [{"role": "user", "content": f"{question['content']} {texts[0]}"}]
        for text in texts[1:]:
            turns += [{"role": "assistant", "content": self.form.good}, {"role": "user", "content": text}]
        text = self.render([*before, *turns])
        if steps:
            return self.encode(text)
        found = text.rfind(question["content"])
        return self.encode(text[: found + len(question["content"])]) if found >= 0 else self.encode(text)[:1]


class PromptReader:
    """Finds the conversation in a prompt: the generator's template, turned round.

    The template is rendered over conversations of up to three questions, with and without a system prompt, and what
    stands where their texts stood is what the prompt holds.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._forms = list(_forms(tokenizer)) if tokenizer.chat_template is not None else []

    def messages(self, prompt: Sequence[int]) -> Messages:
        """Raises ValueError where special tokens show a template that is not the tokenizer's."""
        decode = self._tokenizer.decode
        text = str(decode(list(prompt), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for roles, pattern in self._forms:
            if found := pattern.fullmatch(text):
                return [{"role": role, "content": one} for role, one in zip(roles, found.groups(), strict=True)]
        bos = self._tokenizer.bos_token_id
        inner = prompt[1:] if len(prompt) and prompt[0] == bos else prompt
        if any(token in self._tokenizer.all_special_ids for token in inner):
            raise ValueError(
                f"the prompt {text[:80]!r}... is not what the generator's chat template makes of up to three "
                "questions, so it cannot be written for a PRM of another tokenizer or template; prompt the generator "
                "with apply_chat_template(..., add_generation_prompt=True)"
            )
        plain = decode(list(inner), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return [{"role": "user", "content": str(plain)}]


def _forms(tokenizer: Any) -> Any:
    """(roles, pattern) of conversations; the shortest first, so that a text with one question is read as one."""
    for questions, system in product(range(1, 4), (False, True)):
        roles = ["system"] * system + ["user", "assistant"] * (questions - 1) + ["user"]
        marks = [f"acornmark{number}acorn" for number in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2's own classes: a template may refuse roles, and such prompts do not occur
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            continue
        pattern = re.escape(text)
        if all(pattern.count(mark) == 1 for mark in marks):
            for mark in marks:
                pattern = pattern.replace(mark, _TURN)
            yield roles, re.compile(pattern, re.DOTALL)


_TURN = r"((?:(?!<\|)(?s:.))*?)"
"""Text of a turn: no special token of the usual spelling, or a match could swallow several turns."""


def same_ids(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every text the same ids: vocabulary, merges, splitting and added tokens are equal."""
    parts = ("model", "normalizer", "pre_tokenizer", "added_tokens")
    first, second = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other))
    return all(first[part] == second[part] for part in parts)
