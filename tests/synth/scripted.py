"""An OpenAI-compatible server whose answers follow from the question: started as a process by `scripted_server`.

It writes its port, then a line with the last turn of every request it gets.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}


def number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16)


def reply(messages: list[dict[str, str]], index: int) -> tuple[str | None, str]:
    """Text and finish reason of the `index`-th answer."""
    text = messages[-1]["content"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if "SLOW" in text:
        time.sleep(600)
    if "NOTHING" in text:
        return None, "stop"
    if "CUT" in text:
        return "This goes on and", "length"
    if "difficulty:" in text:
        return tags(text), "stop"
    if "### Output" in text:
        return ratings(text), "stop"
    if "shorter and more" in system:
        return " ".join(text.split()[: len(text.split()) // 2]), "stop"
    if "friendlier" in system:
        return f"Dear friend! {text}", "stop"
    if "Summarise" in system:
        if "INVENT" in text:
            return "It cost 4711 coins.", "stop"
        return " ".join(text.split()[::-3]), "stop"
    if "capital letters" in text:
        return "I AM SURE OF IT" if number(text) % 2 else "I am not sure of it", "stop"
    if "function double" in text:
        return DOUBLES[index % len(DOUBLES)], "stop"
    if (found := re.search(r"(\d+) plus (\d+)", text)) is not None:
        first, second = map(int, found.groups())
        return sums(first, second)[index % 4], "stop"
    return f"Answer {number(text)} is what I would say.", "stop"


def sums(first: int, second: int) -> list[str]:
    total = first + second
    return [
        f"Add them: {first}+{second}={total}\n\n#### {total}",
        f"Both together: {first}+{second}={total}\n\n#### {total}",
        f"Turned round: {second}+{first}={total}\n\n#### {total}",
        f"Add them: {first}+{second}={total + 1}\n\n#### {total + 1}",
    ]


DOUBLES = [
    "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```",
    "```python\ndef double(number):\n    '''Twice.'''\n    return 2 * number\n```",
    "```python\ndef double(x):\n    return x + x\n```",
    "```python\ndef double(x):\n    return x ** 2\n```",
    "```python\ndef double(x):\n    while True: pass\n```",
    "I would rather not.",
]


def tags(text: str) -> str:
    conversation = text[text.index("<conversation>") : text.index("</conversation>")]
    if "weapon" in conversation:
        return "difficulty: 2\nquality: 5\nsafety: unsafe"
    if "mumble" in conversation:
        return "I like it."
    return f"Difficulty: 2\nQuality: {1 if 'poor' in conversation else 4}\nSafety: safe"


def ratings(text: str) -> str:
    texts = re.findall(r"^<text (\d+)> (.*)$", text[text.index("## Annotation") :], re.MULTILINE)
    if "MUMBLE" in text:
        return "All of them are fine."
    return "\n\n".join(f"#### Output for Text {i}\nRating: {1 + int(i) % 5}\nRationale: so." for i, _ in texts)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["prompt"] if self.path.endswith("/completions") and "prompt" in body else body["messages"]
        print(json.dumps(asked if isinstance(asked, str) else asked[-1]["content"]), flush=True)
        if isinstance(asked, str):
            users = asked.endswith("<|im_start|>user\n")
            text = f"What is {time.monotonic_ns() % 9973} times three?" if users else f"It is {number(asked)}."
            self._send(self._about("text_completion", [{"text": text, "index": 0, "finish_reason": "stop"}]))
            return
        choices = []
        for index in range(body.get("n") or 1):
            text, reason = reply(asked, index)
            message = {"role": "assistant", "content": text}
            choices.append({"index": index, "message": message, "finish_reason": reason})
        self._send(self._about("chat.completion", choices))

    def _about(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": "1", "object": kind, "created": 0, "model": "m", "usage": USAGE, "choices": choices}

    def _send(self, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    sys.exit(server.serve_forever())
