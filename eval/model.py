"""lighteval's transformers model, reading an artifact and leaving it alone.

Import it after `eval.lighteval.prepare()`. lighteval 0.13 does the batching, prompting and scoring; overridden is what
would give wrong scores or touch the artifact, each with its reason below.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lighteval.models.model_input import GenerationParameters
from lighteval.models.transformers import transformers_model
from lighteval.models.transformers.transformers_model import TransformersModel, TransformersModelConfig
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc

from eval.config import ENDS, EvaluateConfig, EvaluateExecution, Format

VERBATIM = "verbatim"
"""Key of `Doc.specific`: the query is the whole prompt, in chat format too."""

CPU_BATCH_BYTES = 2**30
LARGEST_BATCH = 512


class NoCache:
    """In place of lighteval's prediction cache.

    That one is keyed by the model's config, not its weights, so a retrained model at the same path would get the old
    model's score; and for a local model it lies inside the model's folder. The registry already remembers results.
    """

    def __init__(self, config: Any) -> None:
        pass

    def _init_registry(self, registry: Any) -> None:
        pass


class Prompts(PromptManager):  # type: ignore[misc]
    """lighteval's prompts, but prose is scored as it is: a chat template around it would be scored too."""

    def prepare_prompt(self, doc: Doc) -> str:
        """The text that the model is given for `doc`."""
        if doc.specific and doc.specific.get(VERBATIM):
            return str(doc.query)
        return str(super().prepare_prompt(doc))


class ArtifactModel(TransformersModel):  # type: ignore[misc]
    """A model folder under lighteval's interface. One object serves several pipelines; end it with `release()`."""

    samples = 1
    """Answers to each question of the task at work; the batch on a CPU is as much smaller."""
    DATASET_SPLITS = None
    """lighteval warns of any other value when it generates, and ignores it."""

    def __init__(
        self, folder: Path, form: Format, config: EvaluateConfig, execution: EvaluateExecution, device: str
    ) -> None:
        """`device`: `cpu` or `cuda`. The weights are loaded in `config.dtype`."""
        self._scoring = False
        with patch.object(transformers_model, "SampleCache", NoCache):
            super().__init__(
                TransformersModelConfig(
                    # Absolute: a relative path reads as a hub id, and lighteval would ask the hub for its revision.
                    model_name=str(folder.resolve()),
                    batch_size=execution.batch_size,
                    dtype=config.dtype,
                    device=device,
                    model_parallel=execution.model_parallel,
                    add_special_tokens=form == "plain",
                    override_chat_template=form == "chat",
                    system_prompt=config.system_prompt,
                    generation_parameters=GenerationParameters(**config.generation_parameters),
                )
            )
        self._system_prompt = config.system_prompt
        self.ask_in(form)
        share = getattr(self.accelerator, "num_processes", 1)
        if share != int(os.environ.get("WORLD_SIZE", "1")):
            raise RuntimeError(
                f"{os.environ['WORLD_SIZE']} processes were started, but this one shares its batches with {share}: "
                "start them with torchrun, as execution.processes does"
            )

    def ask_in(self, form: Format) -> None:
        """Put what follows in this format; a chat template brings its own special tokens."""
        self.use_chat_template = form == "chat"
        self._add_special_tokens = form == "plain"
        self.prompt_manager = Prompts(form == "chat", self.tokenizer, self._system_prompt)

    def wait(self) -> None:
        """Until every process that shares the batches is here."""
        self.accelerator.wait_for_everyone()

    @property
    def opening(self) -> str:
        """Text that opens a document: `bos`, unless the tokenizer adds it by itself; `eos` for one without a `bos`."""
        token = self.tokenizer.bos_token or self.tokenizer.eos_token
        added = self.add_special_tokens and self.tokenizer("a").input_ids[0] == self.tokenizer.bos_token_id
        return "" if added else str(token)

    def greedy_until(self, docs: list[Doc]) -> list[Any]:
        """Answers to `docs`, not from the cache (see `NoCache`)."""
        for doc in docs:  # lighteval adds this to a list, but its own default is a tuple
            doc.stop_sequences = list(doc.stop_sequences or ())
        return _as_lists(self._padded_greedy_until(docs))

    def loglikelihood(self, docs: list[Doc]) -> list[Any]:
        """Log-probabilities (nats) of the choices of `docs`, not from the cache."""
        self._scoring = True
        try:
            return _as_lists(self._loglikelihood_tokens(docs))
        finally:
            self._scoring = False

    def tok_encode_pair(self, context: str, continuations: list[str], pairwise: bool = False) -> Any:
        """Token ids of a context and its continuations.

        lighteval drops an `eos` that ends the context; where `eos` is also the `bos` that opens a document, that
        leaves no context and the first token is scored against the last one's logits.
        """
        contexts, choices = super().tok_encode_pair(context, continuations, pairwise)
        if not contexts[0]:
            contexts = [self.tokenizer.encode(context, add_special_tokens=False)] * len(choices)
        return contexts, choices

    def cleanup(self) -> None:
        """Nothing: lighteval calls this after each pipeline, and the next task needs the model."""

    def release(self) -> None:
        """Free the weights."""
        super().cleanup()

    def _create_auto_model(self) -> Any:
        model = super()._create_auto_model()
        model.generate = _ends_where_it_should(
            model.generate, self.tokenizer, end_ids(model, self.tokenizer), self.config.generation_parameters
        )
        # lighteval adds up log-probabilities in the model's dtype: in bfloat16 a sum of 100 keeps two digits.
        model.register_forward_hook(_logits_in_float32)
        return model

    def _get_batch_size(self, max_input_length: int, override_bs: int | None, starting_batch_size: int = 512) -> int:
        """On a CPU lighteval would try 512 sequences and find the limit by being killed; here: what fits in 1 GiB."""
        if override_bs is not None or self.device.type != "cpu":
            return int(super()._get_batch_size(max_input_length, override_bs, starting_batch_size))
        shape = self.model.config.get_text_config()
        if self._scoring:  # logits, and their log-softmax
            row = 2 * max_input_length * shape.vocab_size * 4
        else:  # keys and values
            row = self.samples * 2 * max_input_length * shape.num_hidden_layers * shape.hidden_size * 4
        return max(1, min(LARGEST_BATCH, CPU_BATCH_BYTES // int(row)))


def _as_lists(responses: list[Any]) -> list[Any]:
    """`responses` with token ids as lists: lighteval logs a hash of their text, and a tensor's takes 2 ms."""
    for response in responses:
        response.input_tokens = [int(token) for token in response.input_tokens]
        response.output_tokens = [torch.as_tensor(tokens).tolist() for tokens in response.output_tokens]
    return responses


def _logits_in_float32(model: Any, inputs: Any, output: Any) -> Any:
    output.logits = output.logits.float()
    return output


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the model's own, the tokenizer's `eos`, `<|endoftext|>` and `<|im_end|>`."""
    own = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    vocabulary = tokenizer.get_vocab()
    return sorted((ids | {vocabulary.get(token) for token in ENDS}) - {None})


def _ends_where_it_should(
    generate: Callable[..., Any], tokenizer: Any, ends: list[int], parameters: GenerationParameters
) -> Callable[..., Any]:
    """`generate` as lighteval should have called it (0.13).

    It passes the tokenizer's one `eos` over the model's several; its stop strings end a batch only when all rows hit
    the same one; it keeps the scores of every step (batch x vocabulary x steps) without reading them; and with a
    temperature it still decodes greedily unless the model's generation_config.json says `do_sample`.
    """

    @torch.inference_mode()
    def call(*arguments: Any, stopping_criteria: Any = (), **options: Any) -> Any:
        words = [criterion.sequence for criterion in stopping_criteria]
        stops = [*options.pop("stop_strings", []), *(word for word in words if word != tokenizer.eos_token)]
        options |= {"eos_token_id": ends, "output_scores": False}
        if stops:
            options |= {"stop_strings": stops, "tokenizer": tokenizer}
        if parameters.temperature > 0:
            options["do_sample"] = True
        else:
            options.pop("temperature")  # transformers warns of one that greedy decoding ignores
        return generate(*arguments, **options)

    return call
