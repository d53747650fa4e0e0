"""A stand-in for the Hugging Face hub on this machine: the handful of requests that huggingface_hub makes to upload a
folder and to ask what is there. Small files travel inside the commit, large ones through Git LFS, as on the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 10_000
COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What arrived. `damage`: name of a file of which the hub keeps something else."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[str] = []
        self.made: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.damage = ""

    def answer(self, path: str, raw: bytes) -> Any:
        """To a POST."""
        self.requests.append(path)
        if path == "/api/repos/create":
            self.made = json.loads(raw)
            return {"url": f"{self.address}/someone/tiny", "name": "someone/tiny", "id": "someone/tiny"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(raw)["files"]
            modes = ({"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular"} for f in asked)
            return {"files": [mode | {"shouldIgnore": False} for mode in modes]}
        if path.endswith("/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._lfs(entry) for entry in json.loads(raw)["objects"]]}
        if "/commit/" in path:
            return self._commit([json.loads(line) for line in raw.splitlines()])
        if "/paths-info/" in path:
            return [self._entry(name) for name in _asked_paths(raw) if name in self.files]
        return {}

    def _lfs(self, entry: dict[str, Any]) -> dict[str, Any]:
        known = entry["oid"] in self.objects
        action = {"upload": {"href": f"{self.address}/lfs/{entry['oid']}", "header": {}}}
        return {"oid": entry["oid"], "size": entry["size"]} | ({} if known else {"actions": action})

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        self.commits += 1
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        if self.damage:
            self.files[self.damage] += b"!"
        return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.address}/someone/tiny/commit/{COMMIT}"}

    def _entry(self, name: str) -> dict[str, Any]:
        raw = self.files[name]
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(raw)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        if len(raw) > LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 130}
        return entry


def _asked_paths(raw: bytes) -> list[str]:
    from urllib.parse import parse_qs

    text = raw.decode()
    return json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]  # type: ignore[no-any-return]


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve one on a free port."""
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _reply(self, content: Any) -> None:
            raw = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self) -> None:
            self._reply(made.answer(self.path.split("?")[0], self._body()))

        def do_PUT(self) -> None:
            made.objects[self.path.rsplit("/", 1)[1]] = self._body()
            self._reply({})

        def do_GET(self) -> None:
            made.requests.append(self.path)
            self._reply({})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
