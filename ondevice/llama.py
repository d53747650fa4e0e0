"""One GGUF in this process, for one conversation at a time: token ids in, text out as it comes.

`engine.llamaserver` listens on a Unix socket in a private folder (mode 0700), so nothing is on the network.
The file is mapped, not read. There is one slot, and its cache holds the last prompt and reply: a prompt that goes on
from them is prefilled only from where it differs, and `Reply.cached_tokens` says how much that spared.
"""

from __future__ import annotations

import contextlib
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.llamaserver import LlamaError, LlamaServer

Messages = list[dict[str, str]]
_OPENING = re.compile(r"<(?=[|/\w])|\[(?=[A-Z/])")
"""How special tokens start: `<|im_end|>`, `</s>`, `<end_of_turn>`, `[INST]`."""
Finish = Literal["stop", "length", "interrupted"]


@dataclass
class Reply:
    """What came of one prompt. `ids`: its tokens, without the one that ends a turn."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: Finish = "interrupted"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that were in the cache already."""
    whole: bool = False
    """Whether `ids` are all of it: llama.cpp sends none for a token that is a part of a character."""

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": len(self.ids),
        }


class Llama:
    """A loaded model with `context` tokens of cache. Use as a context manager: leaving it ends llama.cpp's threads.

    `threads`: default OMP_NUM_THREADS, else the cores of this process. `gpu_layers`: -1 for all.
    Raises LlamaError if the file cannot be loaded.
    """

    def __init__(self, path: Path, context: int, threads: int | None = None, gpu_layers: int = 0) -> None:
        self.path = path
        self.context = context
        self._server = LlamaServer(
            path,
            slots=1,
            context=context,
            most_context=context,
            threads=threads,
            exact=False,
            gpu_layers=gpu_layers,
            special=False,  # else the token that ends a turn would be a part of the reply's text
        )

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def request(self, path: str, body: dict[str, Any] | None) -> Any:
        """POST `body` (GET without one). Raises LlamaError with llama.cpp's message if the answer is not 200."""
        return self._server.request(path, body)

    def tokenize(self, text: str, first: bool = True) -> list[int]:
        """Ids of `text`; special tokens in it count as such. `first`: with what the model wants before every text."""
        body = {"content": text, "parse_special": True, "add_special": first}
        return self.request("/tokenize", body)["tokens"]  # type: ignore[no-any-return]

    def disarmed(self, text: str) -> str:
        """`text` with a space in whatever spells a special token: in a document or a tool's result one would end its
        turn and begin another in any role. Other text comes back as it is. Raises LlamaError if that is not enough.
        """
        if not self._armed(text):
            return text
        broken = _OPENING.sub(lambda match: f"{match[0]} ", text)
        if self._armed(broken):
            raise LlamaError(
                f"the text holds special tokens of {self.path.name} that cannot be told from text: remove them"
            )
        return broken

    def _armed(self, text: str) -> bool:
        body = {"content": text, "parse_special": False, "add_special": False}
        return bool(self.request("/tokenize", body)["tokens"] != self.tokenize(text, first=False))

    def count(self, text: str) -> int:
        return len(self.tokenize(text, first=False))

    def render(self, messages: Messages) -> str:
        """The conversation in the model's chat template, up to where its reply starts."""
        return self.request("/apply-template", {"messages": messages})["prompt"]  # type: ignore[no-any-return]

    def complete(
        self, prompt: list[int], max_tokens: int, options: dict[str, Any], tell: Callable[[str], None]
    ) -> Reply:
        """Generate after `prompt`, calling `tell` with each piece of text. `options`: llama.cpp's samplers by name.

        A KeyboardInterrupt ends the generation: the reply then holds what came so far.
        """
        reply = Reply(prompt_tokens=len(prompt))
        body = {"prompt": prompt, "n_predict": max_tokens, "stream": True, "return_tokens": True} | options
        body |= {"cache_prompt": True, "id_slot": 0}
        try:
            # Leaving the loop early closes the connection, and that frees the slot.
            with contextlib.closing(iter(self._server.stream("/completion", body))) as events:
                for event in events:
                    if event["content"]:
                        reply.text += event["content"]
                        tell(event["content"])
                    reply.ids += event.get("tokens", [])
                    if event["stop"]:
                        _end(reply, event)
        except KeyboardInterrupt:
            reply.finish = "interrupted"
        return reply


def sampling(options: Namespace) -> dict[str, Any]:
    """The samplers of a command line, by llama.cpp's own names; the agent has no `repeat_penalty`."""
    names = ("temperature", "top_p", "seed", "repeat_penalty")
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _end(reply: Reply, event: dict[str, Any]) -> None:
    reply.finish = "length" if event["stop_type"] == "limit" else "stop"
    reply.cached_tokens = int(event["timings"]["cache_n"])
    reply.whole = len(reply.ids) == int(event["tokens_predicted"])
    if event["stop_type"] == "eos" and reply.ids:
        reply.ids.pop()  # drawn, but the next turn's rendering brings it
