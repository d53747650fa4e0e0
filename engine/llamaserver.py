"""llama.cpp in this process, through xllamacpp's server: slots that keep their cache, requests from several threads.

The server always listens; here on a Unix socket in a private folder (mode 0700), so nothing is on the network. Each
slot is one sequence's room in the cache. A slot's state is copied to another one through a file in that folder, on
/dev/shm where there is one: 0.4 ms to write and 0.2 ms to read 100 tokens of a 0.1M-parameter model.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from engine.header import NotGguf, read_header
from engine.limits import default_threads

TIMEOUT = 600.0
_JSON = {"Content-Type": "application/json"}


class LlamaError(RuntimeError):
    """llama.cpp refused a file or a request; the message is its own."""


class Interrupted(LlamaError):
    """A request that was ended from another thread."""


class LlamaServer:
    """One GGUF with `slots` slots of `context` tokens each.

    `context`: 0 for the model's own, at most `most_context`. `threads`: default OMP_NUM_THREADS, else the cores of this
    process. `special`: whether special tokens have a text; without, the server stops at none but end tokens. Raises
    LlamaError if the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int,
        context: int,
        most_context: int,
        threads: int | None,
        exact: bool,
        gpu_layers: int,
        special: bool = True,
    ) -> None:
        self.path = path
        trained = _trained_context(path)
        self.context = min(context, trained) if context else min(trained, most_context)
        shared = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(
            prefix="acorn-llama-", dir=shared if os.access(shared, os.W_OK) else None
        )
        self._socket = str(Path(self._folder.name) / "server.sock")
        params = _params(path, slots, self.context, threads or default_threads(), exact, gpu_layers)
        params.hostnames = [self._socket]
        params.slot_save_path = self._folder.name + "/"
        params.special = special
        self._server = _start(params, path)
        # HTTP is answered before the server's queue runs, and a shutdown in between is lost: its destructor would wait
        # for ever (xllamacpp 2026.10). This answer comes through the queue.
        self.request("/slots", None)

    def close(self) -> None:
        """End the server's threads; a second call does nothing."""
        self._server = None  # its destructor joins the server's threads
        self._folder.cleanup()

    def request(self, path: str, body: dict[str, Any] | None) -> Any:
        """POST `body` (or GET, without one) and return the answer; from any thread.

        Raises LlamaError with llama.cpp's message if it is not 200.
        """
        return self.call(path, body).answer()

    def call(self, path: str, body: dict[str, Any] | None) -> Call:
        """The same as something that can be ended from another thread."""
        if self._server is None:
            raise LlamaError(f"the engine of {self.path.name} is closed; load it again")
        # A new connection each time (about 50 µs): the server closes those that are idle for 5 s.
        return Call(_Connection(self._socket), path, body, self.path.name)

    def stream(self, path: str, body: dict[str, Any]) -> Stream:
        """POST `body`, which asks for a stream; from any thread. The answer's parts are read from what is returned.

        Without a limit of time: a long prompt takes minutes to its first token, and whoever reads can `close`.
        """
        return Stream(_Connection(self._socket, None), path, body, self.path.name)

    def copy_slots(self, copies: list[tuple[int, int]]) -> None:
        """Give slots the cache of others: `(source, target)` pairs. All sources are read before a target is written."""
        sources = {source for source, _ in copies}
        try:
            for source in sources:
                self.request(f"/slots/{source}?action=save", {"filename": f"slot-{source}"})
            for source, target in copies:
                self.request(f"/slots/{target}?action=restore", {"filename": f"slot-{source}"})
        finally:
            for source in sources:
                (Path(self._folder.name) / f"slot-{source}").unlink(missing_ok=True)

    def facts(self) -> tuple[int, frozenset[int]]:
        """Size of the vocabulary, and the tokens at which llama.cpp ends a generation."""
        models = self.request("/v1/models", None)
        # With ignore_eos the server biases against every token that it would end at, and says so.
        ignored = self.request("/completion", {"prompt": [0], "n_predict": 1, "ignore_eos": True})
        ends = ignored["generation_settings"]["logit_bias"]
        return int(models["data"][0]["meta"]["n_vocab"]), frozenset(entry["token"] for entry in ends)


class Call:
    """One request. `close`, from any thread, ends it, and the server's work on it."""

    def __init__(self, connection: _Connection, path: str, body: dict[str, Any] | None, name: str) -> None:
        self._connection, self._path, self._body, self._name = connection, path, body, name
        self._closed = False

    def answer(self) -> Any:
        """Raises LlamaError with llama.cpp's message if it is not 200, Interrupted once closed."""
        try:
            self._send()
            if self._closed:
                raise Interrupted(f"{self._path} for {self._name} was ended")
            response = self._connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._closed:
                raise Interrupted(f"{self._path} for {self._name} was ended") from error
            raise
        finally:
            self._connection.close()
        if response.status != 200:
            raise LlamaError(f"llama.cpp refused {self._path} for {self._name}: {_message(answer)}")
        return answer

    def close(self) -> None:
        self._closed = True
        if (connected := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        payload = None if self._body is None else json.dumps(self._body).encode()
        self._connection.request("GET" if self._body is None else "POST", self._path, payload, _JSON)


class Stream(Call):
    """The parts of one streamed answer."""

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """Raises LlamaError with llama.cpp's message; ends early, without an error, once closed."""
        try:
            self._send()
            if self._closed:
                return
            response = self._connection.getresponse()
            if response.status != 200:
                raise LlamaError(_message(json.loads(response.read())))
            while line := response.readline():
                if line.startswith(b"error:"):
                    raise LlamaError(_message(json.loads(line[6:])))
                if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                    part = json.loads(line[5:])
                    if "error" in part:
                        raise LlamaError(_message(part))
                    yield part
        except (OSError, http.client.HTTPException, ValueError):
            if not self._closed:
                raise
        finally:
            self._connection.close()


def _message(answer: dict[str, Any]) -> str:
    return str(answer.get("error", answer).get("message", answer))


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float | None = TIMEOUT) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _trained_context(path: Path) -> int:
    try:
        return read_header(path).context
    except NotGguf as error:
        raise LlamaError(str(error)) from error
    except OSError as error:
        raise LlamaError(f"{path} is no GGUF model that can be read: {error.strerror}") from error


def _params(path: Path, slots: int, context: int, threads: int, exact: bool, gpu_layers: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = slots
    # llama.cpp rounds a slot's cells up to 256 and takes no more than the model was trained on.
    params.n_ctx = slots * (-(-context // 256) * 256)
    params.kv_unified = False  # else every sequence's attention runs over the cells of all, masked
    params.n_threads_http = slots + 2
    params.n_gpu_layers = gpu_layers
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # default 8 GiB of dropped prompts; here the slots are all there is
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.endpoint_slots = True
    params.fit_params = False  # fitting loads the model twice
    params.warmup = False
    params.ui = False
    params.verbosity = 1
    if exact:
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def _start(params: Any, path: Path) -> Any:
    """Start the server; it installs its own SIGINT and SIGTERM handlers, so Python's are put back after."""
    import xllamacpp

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise LlamaError(f"llama.cpp cannot load {path}: {error}") from error
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
