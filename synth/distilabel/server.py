"""Any OpenAI-compatible server: looked for before any work, and its time-outs counted instead of fatal."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from distilabel.models import OpenAILLM
from distilabel.models.llms.utils import prepare_output
from distilabel.models.mixins.magpie import MagpieChatTemplateMixin
from pydantic import PrivateAttr

from synth.distilabel.models import magpie_prompt

REACH_SECONDS = 10.0


class ServerLLM(OpenAILLM, MagpieChatTemplateMixin):  # type: ignore[misc]
    """distilabel's OpenAILLM that tells whether an answer ended, and gives none where the server took too long.

    `timeout` (s) and `max_retries` are OpenAILLM's own. For Magpie the prompt is made here, so `tokenizer` (a folder
    or hub id with a chat template) is needed, and the server's `/completions`.
    """

    tokenizer: str | None = None
    _tokenizer: Any = PrivateAttr(None)

    def load(self) -> None:
        super().load()
        if self.use_magpie_template:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)

    async def agenerate(  # type: ignore[override]
        self,
        input: Any,
        num_generations: int = 1,
        max_new_tokens: int = 128,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: str | list[str] | None = None,
        response_format: dict[str, str] | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> Any:
        """Answers to one conversation; None for each where the server timed out (`failure`: `timeout`)."""
        from openai import APITimeoutError

        common: dict[str, Any] = {
            "num_generations": num_generations,
            "max_new_tokens": max_new_tokens,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "temperature": temperature,
            "top_p": top_p,
            "extra_body": extra_body,
        }
        try:
            if self.use_magpie_template:
                prompt = magpie_prompt(self._tokenizer, input, str(self.magpie_pre_query_template))
                return await self._raw(prompt, common)
            return await self._generate_chat_completion(
                input=input, stop=stop, response_format=response_format, **common
            )
        except APITimeoutError:
            output = prepare_output([None] * num_generations, output_tokens=[0] * num_generations)
            return output | {"finished": [False] * num_generations, "failure": ["timeout"] * num_generations}

    async def _raw(self, prompt: str, arguments: dict[str, Any]) -> Any:
        names = {"num_generations": "n", "max_new_tokens": "max_tokens"}
        renamed = {names.get(name, name): value for name, value in arguments.items()}
        completion = await self._aclient.completions.create(model=self.model, prompt=prompt, **renamed)
        output = prepare_output(
            [choice.text.strip() for choice in completion.choices], **self._get_llm_statistics(completion)
        )
        return _with_ends(output, completion.choices)

    def _generations_from_openai_completion(self, completion: Any) -> Any:
        return _with_ends(super()._generations_from_openai_completion(completion), completion.choices)


def _with_ends(output: Any, choices: Sequence[Any]) -> Any:
    """Whether each answer ended by itself, and its share of the tokens: servers report the sum over a prompt's."""
    counted = output["statistics"].get("output_tokens") or [0]
    share, rest = divmod(int(counted[0] or 0), len(choices))
    output["statistics"]["output_tokens"] = [share + (index < rest) for index in range(len(choices))]
    return output | {
        "finished": [choice.finish_reason != "length" for choice in choices],
        "failure": [None] * len(choices),
    }


def reach(base_url: str) -> None:
    """Raise ConnectionError unless a server answers at `base_url` and takes the key in OPENAI_API_KEY."""
    url = base_url.rstrip("/") + "/models"
    key = os.environ.get("OPENAI_API_KEY")
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "set OPENAI_API_KEY to a key it knows"
            raise ConnectionError(f"{url} answers {error.code} {error.reason}: {remedy}") from error
        # Whatever else it says, somebody is there; not every server lists its models.
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors; ValueError: no URL at all.
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"no server answers at {url} ({reason}): start it, or correct llm.base_url. Nothing was asked yet"
        ) from error
