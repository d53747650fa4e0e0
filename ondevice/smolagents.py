"""The loop of smolagents with calls that cannot be malformed.

`ToolCallingAgent` drives; its model is held to a JSON schema instead of being told `tools`, since a template without
tools makes nothing of those. The prompt is short: smolagents' own is longer than some small contexts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smolagents import Model, OpenAIModel, Tool, ToolCallingAgent
from smolagents.agents import EMPTY_PROMPT_TEMPLATES, ActionStep, FinalAnswerStep
from smolagents.memory import ToolCall
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import LogLevel, TokenUsage
from smolagents.utils import AgentGenerationError

from ondevice.calls import FINAL, call_schema
from ondevice.llama import Llama
from ondevice.tools import Example, ToolError, ToolSpec

PROMPT = """Solve the task step by step with tools. In each step answer with one JSON object, a call of a tool:
{"name": "TOOL", "arguments": {...}}
You then see its result. When the task is solved, call final_answer.
Tools:
{% for tool in tools.values() %}- {{ tool.summary }}
{% endfor %}"""


EXAMPLES_CONTEXT = 2048
"""Least context in which examples are shown: those of all six tools have about 500 tokens."""


class AgentFailed(RuntimeError):
    """The task was not solved; the message says why and what to change."""


@dataclass(frozen=True)
class Step:
    """What happened: a call, what came of it, or the end. `kind`: "call", "result", "error" or "answer"."""

    kind: str
    number: int
    text: str
    name: str = ""


class _Constrained(Model):  # type: ignore[misc]
    """What both models share: every answer is a call by the schema of the tools."""

    specs: Sequence[ToolSpec] = ()
    examples: bool = True
    """Whether the tools' solved tasks stand before the task: those of the first tool last, since a small model does
    most readily what it saw last."""

    def prepared(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        """Without the agent's own listings of past calls: they repeat what the model wrote, in another form."""
        kept = [message for message in messages if message.role != MessageRole.TOOL_CALL]
        specs = reversed(self.specs) if self.examples else ()
        shown = [message for spec in specs for each in spec.examples for message in _solved(spec, each)]
        return [*kept[:1], *shown, *kept[1:]]

    def schema(self, messages: list[ChatMessage]) -> dict[str, Any]:
        """Of the next call. A model that has just made a call once more is held to its answer: the result is the
        same, and without chance it would go on so to the last step."""
        calls = [_text(message) for message in messages if message.role == MessageRole.ASSISTANT]
        return call_schema([] if calls and calls[-1] in calls[:-1] else self.specs)

    def checked(self, answer: ChatMessage, cut: bool) -> ChatMessage:
        """`answer`. Raises AgentFailed if it was cut: half a call is none."""
        if cut:
            raise AgentFailed(
                f"a call was cut after {answer.token_usage.output_tokens} tokens (finish_reason length): "
                "give a larger --max-tokens, a larger --context, or a shorter task"
            )
        return answer


def _solved(spec: ToolSpec, example: Example) -> list[ChatMessage]:
    """A task of `spec`, its call, the result and the answer, as the agent writes them."""
    task, arguments, result, answer = example

    def said(role: MessageRole, text: str) -> ChatMessage:
        return ChatMessage(role=role, content=[{"type": "text", "text": text}])

    return [
        said(MessageRole.USER, f"New task:\n{task}"),
        said(MessageRole.ASSISTANT, json.dumps({"name": spec.name, "arguments": arguments})),
        said(MessageRole.USER, f"Observation:\n{result}"),
        said(MessageRole.ASSISTANT, json.dumps({"name": FINAL, "arguments": {"answer": answer}})),
    ]


def _text(message: ChatMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])


class LocalModel(_Constrained):
    """The model of this process. What the steps have in common is prefilled once (`cached_tokens` says so)."""

    def __init__(self, llama: Llama, specs: Sequence[ToolSpec], max_tokens: int, options: dict[str, Any]) -> None:
        super().__init__(flatten_messages_as_text=True, model_id=llama.path.name)
        self._llama, self._max_tokens, self._options = llama, max_tokens, options
        self.specs, self.examples = specs, llama.context >= EXAMPLES_CONTEXT

    def generate(self, messages: list[ChatMessage], **_: Any) -> ChatMessage:
        """One call. Raises AgentFailed, LlamaError, KeyboardInterrupt.

        llama-server's chat completions are not used: one that is cut is an error 500 there. Nor are the agent's stop
        words: within a string they would break the JSON.
        """
        given = self._prepare_completion_kwargs(self.prepared(messages))["messages"]
        plain = [
            {"role": MessageRole(each["role"]).value, "content": self._llama.disarmed(each["content"])}
            for each in given
        ]
        prompt = self._llama.tokenize(self._llama.render(plain))
        if len(prompt) >= self._llama.context:
            raise AgentFailed(
                f"the task and its steps have {len(prompt)} tokens, the context {self._llama.context}: "
                "give a larger --context, fewer tools, or a shorter task"
            )
        options = self._options | {"json_schema": self.schema(messages)}
        reply = self._llama.complete(prompt, self._max_tokens, options, lambda _: None)
        if reply.finish == "interrupted":
            raise KeyboardInterrupt
        usage = TokenUsage(input_tokens=reply.prompt_tokens, output_tokens=len(reply.ids))
        answer = ChatMessage(role=MessageRole.ASSISTANT, content=reply.text, token_usage=usage)
        return self.checked(answer, reply.finish == "length")


class ServedModel(_Constrained, OpenAIModel):  # type: ignore[misc]
    """A model behind an OpenAI-compatible URL that knows `response_format`. `options`: those of OpenAIModel."""

    def __init__(self, specs: Sequence[ToolSpec], max_tokens: int, **options: Any) -> None:
        super().__init__(flatten_messages_as_text=True, retry=False, max_tokens=max_tokens, **options)
        self.specs = specs

    def generate(self, messages: list[ChatMessage], **_: Any) -> ChatMessage:
        """One call. Raises AgentFailed, openai.OpenAIError."""
        schema = {"name": "call", "strict": True, "schema": self.schema(messages)}
        form = {"type": "json_schema", "json_schema": schema}
        answer = OpenAIModel.generate(self, self.prepared(messages), response_format=form)
        return self.checked(answer, answer.raw.choices[0].finish_reason == "length")


class _Adapted(Tool):  # type: ignore[misc]
    """A ToolSpec as smolagents has it. Types are the schema's affair, so all are "any" here."""

    skip_forward_signature_validation = True
    output_type = "string"

    def __init__(self, spec: ToolSpec) -> None:
        super().__init__()
        self.name, self.description = spec.name, spec.description
        required = spec.parameters.get("required", [])
        properties = spec.parameters.get("properties", {})
        self.inputs = {
            name: {"type": "any", "description": str(each.get("description", name))}
            | ({} if name in required else {"nullable": True})
            for name, each in properties.items()
        }
        given = ", ".join(
            f"{name} ({each.get('description') or each.get('type')})" for name, each in properties.items()
        )
        self.summary = f"{spec.name}: {spec.description} Arguments: {given or 'none'}"
        self._call = spec.call

    def forward(self, **arguments: Any) -> str:
        return self._call(**arguments)


class _Final(_Adapted):
    def __init__(self) -> None:
        spec = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
        super().__init__(ToolSpec(FINAL, "Give the answer to the task.", spec, lambda answer: answer))


class _Agent(ToolCallingAgent):  # type: ignore[misc]
    def provide_final_answer(self, task: str) -> Any:
        """smolagents would ask for an answer once more, unconstrained; an answer without its steps is none here."""
        raise AgentFailed(f"no answer in {self.max_steps} steps; give a larger --max-steps")


def run_agent(task: str, specs: Sequence[ToolSpec], model: _Constrained, max_steps: int) -> Iterator[Step]:
    """Yield each step as it is done; the last one is the answer.

    Raises AgentFailed: a cut call, no answer in `max_steps`, or an error of the server.
    """
    tools = [*(_Adapted(spec) for spec in specs), _Final()]
    agent = _Agent(
        tools, model, prompt_templates={**EMPTY_PROMPT_TEMPLATES, "system_prompt": PROMPT}, max_steps=max_steps,
        verbosity_level=LogLevel.OFF,
    )  # fmt: skip
    number = 1
    try:
        for event in agent.run(task, stream=True):
            if isinstance(event, ToolCall) and event.name != FINAL:
                yield Step("call", number, json.dumps(event.arguments, ensure_ascii=False), event.name)
            elif isinstance(event, ActionStep):
                number = event.step_number + 1
                if event.error is not None and not isinstance(event.error, AgentGenerationError):
                    yield Step("error", event.step_number, _reason(event.error))
                elif event.error is None and event.tool_calls and not event.is_final_answer:
                    yield Step("result", event.step_number, event.observations or "")
            elif isinstance(event, FinalAnswerStep):
                yield Step("answer", number, str(event.output))
    except AgentGenerationError as error:
        cause = error.__cause__
        raise cause if isinstance(cause, AgentFailed) else AgentFailed(f"the server: {cause or error}") from error


def _reason(error: Exception) -> str:
    """The tool's own words, without smolagents' advice around them."""
    cause = error.__cause__
    return str(cause) if isinstance(cause, ToolError) else str(error)
