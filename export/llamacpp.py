"""llama.cpp in this process, through xllamacpp's server.

The server always listens; here it listens on a Unix socket in a private folder (mode 0700), so nothing is on the
network. Requests are those of llama-server: `/completion`, `/tokenize`, `/apply-template`, `/v1/chat/completions`.
`exact=True` is for comparisons: f32 KV cache and no flash attention (with llama.cpp's default f16 cache logits are off
by 3e-3, without by 1e-5).
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from engine.limits import default_threads

TIMEOUT = 600.0


class LlamaError(RuntimeError):
    """llama.cpp refused a file or a request; the message is its own."""


class LlamaCpp:
    """One GGUF loaded in llama.cpp. Use as a context manager: leaving it ends the server's threads.

    `context`: tokens, 0 for the model's own. `gpu_layers`: -1 for all (where xllamacpp was built for GPUs), 0 for none.
    Raises LlamaError if the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int = 0,
        threads: int | None = None,
        exact: bool = False,
        gpu_layers: int = 0,
        verbose: bool = False,
    ) -> None:
        self.path = path
        self._folder = tempfile.TemporaryDirectory(prefix="acorn-llama-")
        self._socket = str(Path(self._folder.name) / "server.sock")
        params = _params(path, context, threads or default_threads(), exact, gpu_layers, verbose)
        params.hostnames = [self._socket]
        self._server = _start(params, path)
        self._connection = _Connection(self._socket)
        # HTTP is answered before the server's queue runs, and a shutdown in between is lost: its destructor would wait
        # for ever (xllamacpp 2026.10). This answer comes through the queue.
        self._connection.request("GET", "/slots")
        self._connection.getresponse().read()
        self._plain: int | None = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._server = None  # its destructor joins the server's threads
        self._folder.cleanup()

    def request(self, path: str, body: dict[str, Any]) -> Any:
        """POST `body` and return the answer. Raises LlamaError with llama.cpp's message if it is not 200."""
        return self.post(path, json.dumps(body).encode())

    def post(self, path: str, payload: bytes) -> Any:
        """`request` with the body as it is."""
        status, raw = self._connection.post(path, payload)
        answer = json.loads(raw)
        if status != 200:
            message = answer.get("error", {}).get("message", answer)
            raise LlamaError(f"llama.cpp refused {path} for {self.path.name}: {message}")
        return answer

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it count as such, none is added."""
        body = {"content": text, "parse_special": True, "add_special": True}
        return self.request("/tokenize", body)["tokens"]  # type: ignore[no-any-return]

    def refuses(self, raw: bytes) -> bool:
        """Whether `raw`, which is no UTF-8, is refused as a text."""
        try:
            self.post("/tokenize", b'{"content": "' + raw + b'"}')
        except LlamaError:
            return True
        return False

    def render(self, messages: list[dict[str, str]], generation_prompt: bool = True) -> str:
        """The chat template in the GGUF, rendered by llama.cpp's own engine."""
        body = {"messages": messages, "add_generation_prompt": generation_prompt}
        return self.request("/apply-template", body)["prompt"]  # type: ignore[no-any-return]

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """Up to `tokens` greedy tokens after `prompt`; an end-of-generation token ends them and is the last of them."""
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "return_tokens": True}
        return self.request("/completion", body)["tokens"]  # type: ignore[no-any-return]

    def ends_at(self, token: int) -> bool:
        """Whether `token` ends generation; the sampler is made to draw it."""
        body = {"prompt": "a", "n_predict": 2, "temperature": 0.0, "logit_bias": [[token, 1e4]]}
        return self.request("/completion", body)["stop_type"] == "eos"  # type: ignore[no-any-return]

    def next_logprobs(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """Ids and natural-log probabilities of the `count` likeliest next tokens, likeliest first.

        llama.cpp keeps the KV cache of the last prompt, so calling this for growing prefixes costs one token each.
        The probabilities are those of the raw logits. The sampler alone is made to draw "a": after a token that ends
        generation, or that is half a character, the server answers without any probabilities.
        """
        if self._plain is None:
            self._plain = self.tokenize("a")[0]
        bias = [[self._plain, 1e4]]
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0.0, "n_probs": count, "logit_bias": bias}
        top = self.request("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return [entry["id"] for entry in top], [_number(entry["logprob"]) for entry in top]

    def chat(self, messages: list[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
        """llama-server's chat completion: `{"choices": [{"message", "finish_reason"}], "usage", "timings"}`."""
        body = {"messages": messages, "reasoning_format": "none", **options}
        return self.request("/v1/chat/completions", body)  # type: ignore[no-any-return]


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def post(self, path: str, payload: bytes) -> tuple[int, bytes]:
        """Status and body. The server closes a connection that is idle for seconds: then once more, on a new one."""
        for last in (False, True):
            try:
                self.request("POST", path, payload, {"Content-Type": "application/json"})
                response = self.getresponse()
                return response.status, response.read()
            except (ConnectionError, http.client.NotConnected, http.client.CannotSendRequest):
                self.close()
                if last:
                    raise
        raise AssertionError("unreachable")


def _params(path: Path, context: int, threads: int, exact: bool, gpu_layers: int, verbose: bool) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = gpu_layers
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # default 8 GiB of kept prompts; nothing here comes back to an old one
    params.n_ctx_checkpoints = 0
    params.fit_params = False  # fitting loads the model twice
    params.warmup = False
    params.ui = False
    params.prefill_assistant = False  # else a last assistant message is rendered without its end of turn
    params.verbosity = 3 if verbose else 1
    if exact:
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def _start(params: Any, path: Path) -> Any:
    """Start the server; it installs its own SIGINT and SIGTERM handlers, so Python's are put back after."""
    import threading

    import xllamacpp

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise LlamaError(f"llama.cpp cannot load {path}: {error} (execution.verbose: true shows its log)") from error
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
