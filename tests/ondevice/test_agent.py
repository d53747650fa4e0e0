"""The agent: calls that cannot be malformed, every step shown, limits that are reported; and MCP servers as tools."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ondevice.calls import call_schema
from ondevice.llama import Llama
from ondevice.mcp import McpError, mcp_tools
from ondevice.tools import ToolError, ToolSpec, builtin_tools, parameters, text
from tests.ondevice.conftest import Typed

SERVER = '''
from typing import Literal
from pydantic import BaseModel
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("toys")

class Size(BaseModel):
    width: int
    unit: Literal["cm", "m"]

@server.tool()
def measure(size: Size) -> str:
    """Says a size."""
    return f"{size.width} {size.unit}"

@server.tool(name="fail-now")
def fail() -> str:
    """Always fails."""
    raise ToolError("no luck")

server.run()
'''


class Scripted:
    """An OpenAI-compatible endpoint that answers from a list and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str]] = []
        self.asked: list[dict[str, Any]] = []
        self.url = ""


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send({"object": "list", "data": [{"id": "toy", "object": "model", "created": 0, "owned_by": "me"}]})

        def do_POST(self) -> None:
            script.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            content, finish = script.answers.pop(0)
            message = {"role": "assistant", "content": content}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
            head = {"id": "1", "object": "chat.completion", "created": 0, "model": "toy"}
            self.send(head | {"choices": [choice], "usage": usage})

        def send(self, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


def call(name: str, **arguments: Any) -> tuple[str, str]:
    return json.dumps({"name": name, "arguments": arguments}), "stop"


def test_the_agent_uses_tools_and_shows_every_step(typed: Typed, scripted: Scripted, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("Tom has 16 keys.\n")
    scripted.answers = [
        call("search_files", query="keys", path="."),
        call("calculator", expression="16*3"),
        call("final_answer", answer="48 keys"),
    ]
    code, out, err = typed("agent", "How many?", "--server", scripted.url, "--folder", str(tmp_path))
    assert (code, out) == (0, "48 keys\n")
    shown = [line for line in err.splitlines() if line.startswith(("step", "    "))]
    assert shown == [
        'step 1: search_files {"query": "keys", "path": "."}',
        "    keys.txt:1: Tom has 16 keys.",
        'step 2: calculator {"expression": "16*3"}',
        "    48",
    ]
    schema = scripted.asked[0]["response_format"]["json_schema"]["schema"]
    names = [branch["properties"]["name"]["const"] for branch in schema["anyOf"]]
    assert names == [
        "calculator", "convert_units", "time", "list_files", "read_file", "search_files", "final_answer"
    ]  # fmt: skip
    assert "tools" not in scripted.asked[0] and "stop" not in scripted.asked[0]
    solved = ["user", "assistant", "user", "assistant"] * 7  # examples of the six tools
    messages = scripted.asked[2]["messages"]
    assert [message["role"] for message in messages] == [
        "system", *solved, "user", "assistant", "user", "assistant", "user"
    ]  # fmt: skip
    assert messages[-2]["content"] == call("calculator", expression="16*3")[0]


def test_after_a_call_is_repeated_only_the_answer_is_left(typed: Typed, scripted: Scripted) -> None:
    again = call("calculator", expression="16*3")
    scripted.answers = [again, again, call("final_answer", answer="48")]
    code, out, _ = typed("agent", "?", "--server", scripted.url)
    assert (code, out) == (0, "48\n")
    schemas = [asked["response_format"]["json_schema"]["schema"] for asked in scripted.asked]
    assert [len(schema["anyOf"]) for schema in schemas] == [4, 4, 1]
    assert schemas[2]["anyOf"][0]["properties"]["name"] == {"const": "final_answer"}


def test_what_the_examples_call_is_what_the_tools_take(tmp_path: Path) -> None:
    for spec in builtin_tools(tmp_path):
        assert spec.examples
        for example in spec.examples:
            assert list(example.arguments) == spec.parameters["required"]
            if spec.name in ("calculator", "convert_units"):
                assert spec.call(**example.arguments) == example.result
                assert example.answer.split()[0] in example.result


def test_an_error_of_a_tool_goes_back_to_the_model_in_its_own_words(typed: Typed, scripted: Scripted) -> None:
    scripted.answers = [call("calculator", expression="9**9**9"), call("final_answer", answer="too large")]
    code, out, err = typed("agent", "?", "--server", scripted.url, "--json")
    found = json.loads(out)
    assert (code, found["text"], found["error"]) == (0, "too large", None)
    assert [(step["kind"], step["name"]) for step in found["steps"]] == [("call", "calculator"), ("error", "")]
    assert "at most 4096 are taken" in found["steps"][1]["text"] and "at most 4096" in err
    assert "at most 4096" in scripted.asked[1]["messages"][-1]["content"]


def test_a_call_that_was_cut_is_a_failure_that_is_reported(typed: Typed, scripted: Scripted) -> None:
    scripted.answers = [('{"name": "calcul', "length")]
    code, out, err = typed("agent", "?", "--server", scripted.url)
    assert (code, out) == (1, "")
    assert "a call was cut after 7 tokens (finish_reason length): give a larger --max-tokens" in " ".join(err.split())


def test_the_step_limit_ends_it_without_an_answer(typed: Typed, scripted: Scripted) -> None:
    scripted.answers = [call("time", zone="UTC")] * 3
    code, out, err = typed("agent", "?", "--server", scripted.url, "--max-steps", "2", "--json")
    assert code == 1 and json.loads(out)["text"] is None
    assert "no answer in 2 steps; give a larger --max-steps" in err
    assert len(scripted.asked) == 2


def test_options_of_a_file_are_refused_with_a_server(typed: Typed) -> None:
    code, _, err = typed("agent", "?", "--server", "http://127.0.0.1:9", "--context", "512")
    assert code == 1 and "--context: these are of a model file" in err
    code, _, err = typed("agent", "?", "--server", "http://127.0.0.1:9")
    assert code == 1 and "--server http://127.0.0.1:9" in err


def test_a_random_model_can_only_make_valid_calls(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ondevice.smolagents import LocalModel, run_agent

    called: list[dict[str, Any]] = []

    def note(**arguments: Any) -> str:
        called.append(arguments)
        return "noted"

    kind = {"type": "string", "enum": ["a", "b"]}
    count = {"type": "integer", "minimum": 0, "maximum": 99}
    spec = ToolSpec("note", "Takes a note.", parameters(kind=kind, count=count, title=text("a title", 8)), note)
    with Llama(gguf / "tiny-f16.gguf", 2048) as llama:
        for seed in range(6):
            model = LocalModel(llama, [spec], 300, {"temperature": 1.5, "seed": seed})
            endless = call_schema([spec])
            endless["anyOf"].pop()  # no way to end: each step must be a call
            monkeypatch.setattr(model, "schema", lambda _, endless=endless: endless)
            steps = []
            with pytest.raises(RuntimeError, match="no answer in 2 steps"):
                steps += run_agent("go", [spec], model, 2)
    assert len(called) == 12
    for arguments in called:
        assert arguments["kind"] in ("a", "b") and 0 <= arguments["count"] <= 99 and len(arguments["title"]) <= 8


def test_the_agent_runs_on_a_file_and_prefills_what_is_new(
    typed: Typed, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Any] = []
    real = Llama.complete

    def complete(self: Llama, *arguments: Any) -> Any:
        replies.append(real(self, *arguments))
        return replies[-1]

    monkeypatch.setattr(Llama, "complete", complete)
    options = ["--model", str(gguf), "--temperature", "1", "--seed", "1", "--max-steps", "2", "--json"]
    code, out, _ = typed("agent", "What time is it?", *options)
    found = json.loads(out)
    assert (found["text"] is None) == bool(code) == bool(found["error"])
    assert all(json.loads(reply.text)["name"] for reply in replies if reply.finish == "stop")
    if len(replies) > 1:
        assert replies[1].cached_tokens >= replies[0].prompt_tokens


def test_an_agent_without_room_says_so(typed: Typed, gguf: Path) -> None:
    code, _, err = typed("agent", "What time is it?", "--model", str(gguf), "--context", "256")
    assert code == 1 and "give a larger --context, fewer tools, or a shorter task" in " ".join(err.split())


def test_definitions_of_two_tools_do_not_meet() -> None:
    def spec(name: str, inner: dict[str, Any]) -> ToolSpec:
        properties = {"title": {"$ref": "#/$defs/T"}}
        return ToolSpec(
            name, "", {"type": "object", "title": "X", "properties": properties, "$defs": {"T": inner}}, str
        )

    schema = call_schema([spec("a", {"type": "integer"}), spec("b", {"type": "string", "default": "x"})])
    assert schema["$defs"] == {"a.T": {"type": "integer"}, "b.T": {"type": "string"}}
    assert schema["anyOf"][1]["properties"]["arguments"] == {
        "type": "object",
        "properties": {"title": {"$ref": "#/$defs/b.T"}},
        "additionalProperties": False,
    }


def test_tools_of_an_mcp_server_are_called_and_their_errors_told(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondevice.mcp.TIMEOUT", 400.0)  # seconds: it imports the library, on a busy machine
    (tmp_path / "server.py").write_text(SERVER)
    with mcp_tools([f"{sys.executable} {tmp_path / 'server.py'}"]) as specs:
        by_name = {spec.name: spec for spec in specs}
        assert set(by_name) == {"measure", "fail_now"}
        assert by_name["measure"].call(size={"width": 3, "unit": "cm"}) == "3 cm"
        with pytest.raises(ToolError, match="no luck"):
            by_name["fail_now"].call()
        with Llama(gguf / "tiny-f16.gguf", 1024) as llama:
            schema = call_schema([by_name["measure"]])
            schema["anyOf"].pop()
            prompt = llama.tokenize("go")
            reply = llama.complete(prompt, 400, {"json_schema": schema, "temperature": 1.0, "seed": 2}, lambda _: None)
        size = json.loads(reply.text)["arguments"]["size"]
        assert isinstance(size["width"], int) and size["unit"] in ("cm", "m")


def test_an_mcp_server_that_does_not_start_is_named_with_what_it_said() -> None:
    with pytest.raises(McpError, match="--mcp no-such-command-here"), mcp_tools(["no-such-command-here --x"]):
        pass
    broken = f"{sys.executable} -c 'raise SystemExit(\"out of toys\")'"
    with pytest.raises(McpError, match="out of toys"), mcp_tools([broken]):
        pass


def test_two_tools_of_one_name_are_refused(typed: Typed, tmp_path: Path) -> None:
    from ondevice.agent import distinct

    with pytest.raises(ValueError, match="two tools are named calculator"):
        distinct([*builtin_tools(None), *builtin_tools(None)[:1]])
