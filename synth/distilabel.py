"""All that touches distilabel 1.5.3: its LLMs, its pipeline, its MinHash step, and what has to be patched in it.

One call of `generate` is one distilabel pipeline (`LoadDataFromDicts >> ChatGeneration`) without cache: distilabel's
own resume after a crash hangs, so resuming is the business of `synth.shards`. The steps are forked processes, and
they die with this one. Starting and ending a pipeline costs about 0.6 s.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import datasets
import distilabel.distiset
import distilabel.pipeline.base
import distilabel.pipeline.local
from distilabel.models import LLM, OpenAILLM, TransformersLLM
from distilabel.models.llms.utils import prepare_output
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, MinHashDedup
from distilabel.steps.tasks import ChatGeneration
from distilabel.utils.logging import stop_logging
from pydantic import PrivateAttr, validate_call

from synth.processes import die_with, process_kept
from synth.shards import read_jsonl
from synth.teacher import Message, Teacher

# Importing distilabel installs rich's tracebacks with every local variable: keys to servers and whole data sets.
sys.excepthook = sys.__excepthook__

STEP = "generate"
STEPS = 2
"""Processes of the pipeline below: one that loads, one that generates."""


class Generation(TypedDict):
    """One answer of an LLM."""

    id: str
    text: str | None
    """None where the LLM gave no answer."""
    finished: bool
    """Ended by itself within the token limit; True where the LLM does not tell."""
    tokens: int
    """Tokens generated; 0 where the LLM does not tell."""


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
        seeds = [
            _stable_seed(f"{self.seed}:{number}:{prompt}") for prompt in prompts for number in range(num_generations)
        ]
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


LLM_CLASSES: dict[str, type[Any]] = {"teacher": TeacherLLM, "model": ModelLLM, "openai": OpenAILLM}
SET_BY_ACORN = {
    "teacher": {"problems", "seed", "generation_kwargs"},
    "model": {"seed", "batch_size", "device", "structured_output", "cuda_devices", "disable_cuda_device_placement"},
    "openai": set[str](),
}
"""Fields of the classes that the stage fills in itself, or that its classes do not use."""


def make_llm(
    arguments: Mapping[str, Any], *, problems: Path, model: Path | None, seed: int, device: str, batch_size: int
) -> Any:
    """The LLM that `arguments` (a config's `llm`) asks for.

    `device` may be `"auto"`. Raises ValueError if a model is asked for and there is none.
    """
    rest = {key: value for key, value in arguments.items() if key != "type"}
    if arguments["type"] == "teacher":
        return TeacherLLM(problems=str(problems), seed=seed, **rest)
    if arguments["type"] == "openai":
        if rest.get("base_url") and not os.environ.get("OPENAI_API_KEY"):
            rest["api_key"] = "none"  # A server of one's own asks for no key, but the client wants one.
        return OpenAILLM(**rest)
    # Before the first fork, so that every shard's process has torch and transformers. Neither may start CUDA here.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import transformers.models.llama.modeling_llama  # noqa: F401

    import engine.torch  # noqa: F401

    if model is not None:
        rest["model"] = str(model)
    if "model" not in rest:
        raise ValueError("llm.type is 'model', but the step has no `model` input: name one under `inputs:`")
    return ModelLLM(seed=seed, batch_size=batch_size, device=device, **rest)


def generate(prompts: Sequence[Mapping[str, Any]], llm: Any, num_generations: int, scratch: Path) -> list[Generation]:
    """Answers to `prompts` (`{"id", "messages"}`) in their order, `num_generations` each, by one pipeline.

    Raises RuntimeError if a batch failed (distilabel would go on with a row of None for each of its prompts) or a
    prompt has no answer (it was interrupted), ChildProcessError if a step's process died (it would wait for ever).
    """
    # The LLM batches by itself; only requests to a server are better cut up, as a failed batch is a failed shard.
    size = 50 if isinstance(llm, OpenAILLM) else len(prompts)
    cache = scratch / "distilabel"
    shutil.rmtree(cache, ignore_errors=True)
    failures = _Failures()
    with _patched(cache), process_kept():
        with _Pipeline(name="synth", cache_dir=cache, enable_metadata=True) as pipeline:
            rows = [{"id": prompt["id"], "messages": prompt["messages"]} for prompt in prompts]
            load = LoadDataFromDicts(data=rows, batch_size=size)
            task = ChatGeneration(
                name=STEP,
                llm=llm,
                num_generations=num_generations,
                input_batch_size=size,
                add_raw_input=False,
                add_raw_output=False,
            )
            load >> task
        try:
            distiset = pipeline.run(use_cache=False, logging_handlers=[failures])
        except RuntimeError as error:
            raise RuntimeError("distilabel's pipeline did not run:\n" + "\n".join(failures.messages)) from error
        finally:
            stop_logging()  # The pipeline does it only when it ends well.
        failures.check()
        answered = distiset["default"]["train"].to_list()
    shutil.rmtree(cache)
    if lost := {prompt["id"] for prompt in prompts} - {row["id"] for row in answered}:
        raise RuntimeError(
            f"distilabel left {len(lost)} of {len(prompts)} prompts without an answer: was it interrupted?"
        )
    return [_generation(row) for row in answered]


def near_duplicates(texts: Sequence[str], arguments: Mapping[str, Any]) -> list[bool]:
    """Whether each text is a near copy of an earlier one, by distilabel's MinHashDedup run in this process."""
    if not texts:
        return []
    with Pipeline(name="dedup"):
        step = MinHashDedup(**arguments)
    step.load()
    # distilabel's copy of MinHashLSH.__init__ lacks what datasketch 1.10 reads; in memory any kind of key will do.
    step._lsh._require_bytes_keys = False
    rows = next(step.process([{"text": text} for text in texts]))
    step.unload()
    return [not row["keep_row_after_minhash_filtering"] for row in rows]


def _generation(row: Mapping[str, Any]) -> Generation:
    statistics = (row.get("distilabel_metadata") or {}).get(f"statistics_{STEP}") or {}
    finished = row.get(f"llm_{STEP}_finished")
    return Generation(
        id=row["id"],
        text=row["generation"],
        finished=True if finished is None else bool(finished),
        tokens=int(statistics.get("output_tokens") or 0),
    )


def _stable_seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class _Pipeline(Pipeline):  # type: ignore[misc]
    """Waits for the error of a step that could not load, which comes by another way than the news that it could not."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._heard = threading.Event()

    def _error_callback(self, e: BaseException) -> None:
        super()._error_callback(e)
        self._heard.set()

    def _set_steps_not_loaded_exception(self) -> None:
        self._heard.wait(timeout=10)
        super()._set_steps_not_loaded_exception()


class _Failures(logging.Handler):
    """Remembers that a batch failed, and why: distilabel only logs it."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def check(self) -> None:
        if any("Sending empty batch" in message for message in self.messages):
            causes = [message for message in self.messages if "traceback" in message]
            raise RuntimeError(
                "distilabel could not answer a batch of prompts; finished shards are kept, so mend the cause and run "
                "again.\n" + "\n".join(causes)
            )


@contextmanager
def _patched(cache: Path) -> Iterator[None]:
    """distilabel 1.5.3 (the newest release), while a pipeline runs:

    - a step's process that dies, killed for lack of memory, is replaced and its work forgotten: the pipeline would
      wait for ever, so the replacement tells this process;
    - its manager and step processes outlive a killed parent, waiting for ever on pipes whose other end they hold
      themselves (4 orphans after SIGKILL): each now dies with this process;
    - it polls for loaded steps every 2.5 s and for finished ones every 0.5 s, which is most of a small pipeline's
      time: at most 0.02 s here;
    - it reads its result through the user's `datasets` cache, which would grow by every shard: kept in `cache`.
    """
    parent = os.getpid()

    def manager() -> SyncManager:
        made = SyncManager(ctx=multiprocessing.get_context())
        made.start(initializer=die_with, initargs=(parent,))
        return made

    local, base, distiset = distilabel.pipeline.local, distilabel.pipeline.base, distilabel.distiset
    born = multiprocessing.Value("i", 0)
    leashed = partial(_leashed, parent, born, local._init_worker)
    patches: list[tuple[Any, str, Any]] = [
        (local, "mp", SimpleNamespace(Queue=multiprocessing.Queue, Manager=manager)),
        (local, "_init_worker", leashed),
        (base, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.02)), time=time.time)),
        (distiset, "load_dataset", partial(datasets.load_dataset, cache_dir=str(cache / "datasets"))),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        for module, name, value in patches:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        if not bars:
            datasets.enable_progress_bars()


def _leashed(parent: int, born: Any, init_worker: Any, *arguments: Any) -> None:
    # The pool ends its workers by SIGTERM. A handler they inherit, as the command line's, may raise where distilabel
    # swallows it, and the pool would wait for ever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    init_worker(*arguments)
    with born.get_lock():
        born.value += 1
        replacement = born.value > STEPS
    if replacement:
        os.kill(parent, signal.SIGUSR1)
        # Until SIGTERM. It must not go on to take the lock of the pool's queue: the thread that forked it ends before
        # the pool takes that lock, and with the thread this process (prctl(2): "parent" is a thread), lock in hand.
        while True:
            signal.pause()
