"""The LLMs of this machine behind distilabel's interface: the teacher's rules, and models that acorn's engines run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distilabel.models import LLM, TransformersLLM
from distilabel.models.llms.utils import prepare_output
from pydantic import Field, PrivateAttr, validate_call

from synth.shards import read_jsonl
from synth.teacher import Message, Teacher


class TeacherLLM(LLM):  # type: ignore[misc]
    """`synth.teacher.Teacher` behind distilabel's LLM interface."""

    problems: str
    """The corpus's `problems/train.jsonl`."""
    seed: int = 0
    _teacher: Teacher | None = PrivateAttr(None)

    def load(self) -> None:
        super().load()
        rows = read_jsonl(Path(self.problems))
        self._teacher = Teacher({row["question"]: row["solution"] for row in rows}, self.seed)

    @property
    def model_name(self) -> str:
        return "teacher"

    def generate(self, inputs: list[list[Message]], num_generations: int = 1) -> list[Any]:
        """The same answer `num_generations` times: a rule has one opinion."""
        assert self._teacher is not None, "load() comes first"
        return [prepare_output([self._teacher.answer(messages)] * num_generations) for messages in inputs]


class ModelLLM(TransformersLLM):  # type: ignore[misc]
    """distilabel's TransformersLLM on acorn's torch engine: batches, seeds, and word of whether an answer ended.

    TransformersLLM generates one prompt after the other and has no seed. Here `batch_size` sequences are generated at
    a time, a prompt runs through the model once for all its samples, and each sample draws from its own stream, seeded
    by (seed, prompt, number of the sample), so neither batches nor shards change what is drawn, but for float rounding.
    """

    device: str = "auto"
    seed: int = 0
    batch_size: int = 128
    _salts: list[str] | None = PrivateAttr(None)
    """What tells apart the samples of equal prompts in the next call of `generate`; see `Conversation`."""

    def load(self) -> None:
        """Load model and tokenizer themselves: importing transformers' `pipeline` would take another two seconds."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from engine.load import end_ids_of, pick_device
        from engine.torch import TorchEngine

        token = self.token.get_secret_value() if self.token is not None else None
        common = {"revision": self.revision, "trust_remote_code": self.trust_remote_code, "token": token}
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer or self.model, use_fast=self.use_fast, **common)
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        model = AutoModelForCausalLM.from_pretrained(
            self.model, dtype=self.torch_dtype, device_map=self.device_map, **common, **(self.model_kwargs or {})
        )
        if self.device_map is None:
            # Decided here, in the step's own process: a CUDA context does not survive a fork.
            model = model.to(pick_device(self.device))
        engine = TorchEngine(model, end_ids=end_ids_of(model, tokenizer), rows=self.batch_size)
        self._pipeline = SimpleNamespace(engine=engine, tokenizer=tokenizer)
        LLM.load(self)

    def unload(self) -> None:
        """Nothing was taken that its process does not give back; distilabel's GPU map is not used for one LLM."""

    def prepare_input(self, input: list[dict[str, str]]) -> str:
        """distilabel opens the assistant's turn even where Magpie then opens the user's; here only one is opened."""
        if not self.use_magpie_template:
            return str(super().prepare_input(input))
        return magpie_prompt(self._pipeline.tokenizer, input, str(self.magpie_pre_query_template))

    @validate_call  # type: ignore[misc]
    def generate(
        self,
        inputs: list[list[dict[str, str]]],
        num_generations: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        do_sample: bool = True,
    ) -> list[Any]:
        """Samples for each conversation; `do_sample=False` takes the most probable tokens."""
        from engine.interface import Sampling
        from synth.sampling import sample

        sampling = Sampling(temperature if do_sample else 0.0, top_k, top_p, min_p)
        prompts = [self.prepare_input(messages) for messages in inputs]
        salted = prompts if self._salts is None else map("\n".join, zip(self._salts, prompts, strict=True))
        seeds = [_stable_seed(f"{self.seed}:{number}:{text}") for text in salted for number in range(num_generations)]
        repeated = [prompt for prompt in prompts for _ in range(num_generations)]
        pipeline = self._pipeline
        samples = sample(
            pipeline.engine, pipeline.tokenizer, repeated, seeds, sampling, max_new_tokens, self.batch_size
        )
        outputs = []
        for start in range(0, len(samples), num_generations):
            own = samples[start : start + num_generations]
            output = prepare_output([one.text for one in own], output_tokens=[one.tokens for one in own])
            output["finished"] = [one.finished for one in own]
            outputs.append(output)
        return outputs


class VllmLLM(ModelLLM):
    """The same on vLLM, for GPUs. `vllm` are `vllm.LLM`'s own arguments."""

    vllm: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> None:
        from transformers import AutoTokenizer

        from engine.vllm import VllmEngine

        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer or self.model)
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        self._pipeline = SimpleNamespace(engine=VllmEngine(Path(self.model), **self.vllm), tokenizer=tokenizer)
        LLM.load(self)


class GgufLLM(ModelLLM):
    """The same on a GGUF, by llama.cpp with the file's own tokenizer and chat template.

    `llamacpp` are arguments of acorn's `LlamaCppEngine`. The draws are llama.cpp's, with one slot the same each time.
    """

    llamacpp: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> None:
        from engine.adapters import find_gguf
        from engine.llamacpp import LlamaCppEngine

        file = find_gguf(Path(self.model))
        if file is None:
            raise FileNotFoundError(f"{self.model} holds no .gguf file")
        engine = LlamaCppEngine(file, **{"slots": 1, **self.llamacpp})
        self._pipeline = SimpleNamespace(engine=engine, tokenizer=GgufTokenizer(engine, self.chat_template))
        LLM.load(self)

    def unload(self) -> None:
        self._pipeline.engine.shutdown()


class GgufTokenizer:
    """What `synth.sampling` and the templates need of a transformers tokenizer, asked of llama.cpp."""

    def __init__(self, engine: Any, chat_template: str | None) -> None:
        self._engine = engine
        self.chat_template = chat_template or "the file's own"

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        body = {"content": text, "add_special": add_special_tokens, "parse_special": True}
        return {"input_ids": list(self._engine.ask("/tokenize", body)["tokens"])}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Without the end tokens; llama.cpp does not tell which others are special."""
        own = [each for each in ids if not (skip_special_tokens and each in self._engine.end_ids)]
        return str(self._engine.ask("/detokenize", {"tokens": own})["content"])

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool = False, add_generation_prompt: bool = True
    ) -> str:
        body = {"messages": conversation, "add_generation_prompt": add_generation_prompt}
        return str(self._engine.ask("/apply-template", body)["prompt"])


def magpie_prompt(tokenizer: Any, messages: Sequence[dict[str, str]], pre_query: str) -> str:
    """The prompt for the next turn, the user's where it is theirs. Raises ValueError without a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("Magpie lets a chat model speak as the user, and this one's tokenizer has no chat template")
    users = not messages or messages[-1]["role"] != "user"
    prompt = ""
    if messages:
        prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not users)
    return prompt + pre_query if users else prompt


def _stable_seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
