"""One GGUF in this process, for one conversation at a time: token ids in, text out as it comes.

llama.cpp (xllamacpp's server) listens on a Unix socket in a private folder (mode 0700), so nothing is on the network.
The file is mapped, not read. There is one slot, and its cache holds the last prompt and reply: a prompt that goes on
from them is prefilled only from where it differs, and `Reply.cached_tokens` says how much that spared.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.llamaserver import LlamaError, SocketConnection, start

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
        self._folder = tempfile.TemporaryDirectory(prefix="acorn-llama-")
        self.socket = str(Path(self._folder.name) / "server.sock")
        params = _params(path, context, threads or _default_threads(), gpu_layers)
        params.hostnames = [self.socket]
        self._server = start(params, path)
        self.request("/slots", None)  # through the server's queue, which must run before it is shut down

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self._server = None  # its destructor joins the server's threads
        self._folder.cleanup()

    def request(self, path: str, body: dict[str, Any] | None) -> Any:
        """POST `body` (GET without one). Raises LlamaError with llama.cpp's message if the answer is not 200."""
        with _Exchange(self.socket, path, body) as response:
            return json.loads(response.read())

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
            for event in self._events(body):
                if event["content"]:
                    reply.text += event["content"]
                    tell(event["content"])
                reply.ids += event.get("tokens", [])
                if event["stop"]:
                    _end(reply, event)
        except KeyboardInterrupt:
            reply.finish = "interrupted"
        return reply

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Server-sent events of one completion; leaving the loop early frees the slot."""
        with _Exchange(self.socket, "/completion", body) as response:
            for line in response:
                kind, _, data = line.decode().strip().partition(": ")
                if kind == "error" or data.startswith('{"error"'):
                    raise LlamaError(f"llama.cpp stopped answering for {self.path.name}: {data}")
                if kind == "data":
                    yield json.loads(data)


def sampling(options: Namespace) -> dict[str, Any]:
    """The samplers of a command line, by llama.cpp's own names."""
    return {"temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}


class _Exchange:
    """One request, with its response open as long as the block runs."""

    def __init__(self, socket: str, path: str, body: dict[str, Any] | None) -> None:
        self._connection = SocketConnection(socket)
        self._path, self._body = path, body

    def __enter__(self) -> Any:
        payload = None if self._body is None else json.dumps(self._body).encode()
        self._connection.request(
            "GET" if self._body is None else "POST", self._path, payload, {"Content-Type": "application/json"}
        )
        response = self._connection.getresponse()
        if response.status != 200:
            answer = json.loads(response.read())
            self._connection.close()
            raise LlamaError(f"llama.cpp refused {self._path}: {answer.get('error', {}).get('message', answer)}")
        return response

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _end(reply: Reply, event: dict[str, Any]) -> None:
    reply.finish = "length" if event["stop_type"] == "limit" else "stop"
    reply.cached_tokens = int(event["timings"]["cache_n"])
    reply.whole = len(reply.ids) == int(event["tokens_predicted"])
    if event["stop_type"] == "eos" and reply.ids:
        reply.ids.pop()  # drawn, but the next turn's rendering brings it


def _params(path: Path, context: int, threads: int, gpu_layers: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = 1
    params.n_ctx = -(-context // 256) * 256  # llama.cpp rounds up to this itself
    params.n_threads_http = 2
    params.n_gpu_layers = gpu_layers
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # default 8 GiB of dropped prompts; the slot is all that is kept here
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.endpoint_slots = True
    params.fit_params = False  # fitting loads the model twice
    params.warmup = False
    params.ui = False
    params.prefill_assistant = False  # else a last assistant message is rendered without its end of turn
    params.verbosity = 0  # refusals come as LlamaError
    return params


def _default_threads() -> int:
    if given := os.environ.get("OMP_NUM_THREADS"):
        return max(1, int(given.split(",")[0]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
