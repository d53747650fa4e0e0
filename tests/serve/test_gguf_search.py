"""Search on llama.cpp: the same search as on torch, in slots that others use as well."""

from __future__ import annotations

import select
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.interface import Sampling
from export.gguf import write_gguf
from search.options import Dvts
from serve.backend import Delta, Work
from serve.llamacpp import LlamaBackend
from serve.search_field import Offer, read_search
from serve.slots import Job, Shares
from tests.search.conftest import tiny_prm  # noqa: F401
from tests.serve.servers import NAME, PATIENCE, Running, running, settings_of, until

PROMPT = tuple(range(20, 120))


@pytest.fixture(scope="module")
def gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("search") / "tiny-f32.gguf"
    write_gguf(tiny_model, file, "f32", {"name": "tiny"})
    return file


def backend_of(gguf: Path, **changed: Any) -> LlamaBackend:
    return LlamaBackend(settings_of(gguf, engine="llamacpp", context=512, **changed))


@pytest.fixture
def backend(gguf: Path, tiny_prm: Path) -> Iterator[LlamaBackend]:  # noqa: F811
    made = backend_of(gguf, verifier=tiny_prm, rows=4)
    yield made
    made.close()


def work(seed: int = 5, max_tokens: int = 24, cache: bool = True, **field: Any) -> Work:
    read = read_search({"max_step_tokens": 8, **field}, max_tokens, Offer(1 << 20, verifier=True), 1.0)
    return Work(PROMPT, Sampling(), read.max_tokens, seed, cache=cache, search=read.model_dump())


def told_by(backend: LlamaBackend) -> list[Delta]:
    """Deltas of the next turn that has something to do."""
    if not backend.busy:
        assert select.select(backend.files, [], [], PATIENCE)[0], "nothing came"
    return backend.turn()


def deltas_of(backend: LlamaBackend, *handles: int) -> dict[int, list[Delta]]:
    """All deltas of these handles, until each has its last."""
    told: dict[int, list[Delta]] = {handle: [] for handle in handles}
    while not all(deltas and deltas[-1].last for deltas in told.values()):
        for delta in told_by(backend):
            told[delta.handle].append(delta)
    return told


def idle(backend: LlamaBackend) -> bool:
    backend.turn()
    stats = backend.stats()
    return stats.running == stats.waiting == 0


def steps_of(deltas: list[Delta]) -> dict[int, dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for delta in deltas[:-1]:
        for step in (delta.extra or {}).get("steps", []):
            steps.setdefault(step["id"], {}).update(step)
    return steps


def test_the_winner_is_one_of_the_samples_and_the_budget_is_kept(backend: LlamaBackend) -> None:
    handle = backend.submit(work(method="best_of_n", n=12, budget=300))
    deltas = deltas_of(backend, handle)[handle]
    last, steps = deltas[-1], steps_of(deltas)
    assert last.extra is not None and last.error is None
    assert last.count == last.extra["spent"]["generated"] + last.extra["spent"]["scored"] <= 300
    assert 0 < last.extra["spent"]["scored"] <= last.extra["spent"]["generated"]
    assert len([step for step in steps.values() if step["parent"] == -1]) >= 6, "each may cost 48 at most"
    path = last.extra["path"]
    assert "".join(delta.text or "" for delta in deltas) == "".join(steps[at]["text"] for at in path)
    assert [steps[at]["parent"] for at in path] == [-1, *path[:-1]]
    scores = {at: step["score"] for at, step in steps.items()}
    assert last.extra["score"] == pytest.approx(min(scores[at] for at in path if scores[at] is not None))
    until(lambda: idle(backend))
    assert not backend.busy


def test_with_one_slot_it_is_the_search_of_the_library_token_for_token(gguf: Path, tiny_prm: Path) -> None:  # noqa: F811
    """With more, who shares a batch changes logits by rounding."""
    from acorn.answers import Answers
    from engine.llamacpp import LlamaCppEngine
    from engine.prm import load_verifier
    from search.budget import Budget
    from search.methods import search
    from search.setup import Setup
    from search.steps import StepSplitter
    from serve.gguf import fast_tokenizer

    backend = backend_of(gguf, verifier=tiny_prm, rows=1)
    handle = backend.submit(work(method="dvts", n=4, width=2))
    deltas = deltas_of(backend, handle)[handle]
    backend.close()
    tokenizer = fast_tokenizer(gguf)
    setup = Setup(Budget(24, 8, 1 << 20), StepSplitter(tokenizer, "\n\n"), Answers())
    verifier = load_verifier(tiny_prm, policy_tokenizer=tokenizer, dtype="float32")
    with LlamaCppEngine(gguf, slots=1, context=512) as engine:
        [outcome] = search(engine, verifier, [list(PROMPT)], [5], Dvts(n=4, width=2), setup)
    steps, last = steps_of(deltas), deltas[-1]
    assert last.extra is not None
    assert last.extra["spent"] == {"generated": outcome.spent.generated, "scored": outcome.spent.scored}
    assert [steps[at]["text"] for at in range(len(steps))] == [setup.splitter.text(node.ids) for node in outcome.nodes]
    assert [steps[at]["score"] for at in range(len(steps))] == pytest.approx(
        [node.score for node in outcome.nodes], abs=1e-4
    )


def test_samples_of_one_prompt_prefill_it_once_and_the_next_search_finds_it(backend: LlamaBackend) -> None:
    before = backend.stats()
    one, other = (backend.submit(work(seed, method="majority", n=9)) for seed in (1, 2))
    first = deltas_of(backend, one, other)
    ran = backend.stats().prompt_tokens - before.prompt_tokens
    # Each sequence runs the last token of its prompt again; an untrained model seldom stops at a delimiter.
    assert len(PROMPT) <= ran < 2 * len(PROMPT)
    assert first[one][-1].cached == 0
    again = backend.submit(work(3, method="majority", n=2))
    assert deltas_of(backend, again)[again][-1].cached == len(PROMPT) - 1


def test_a_tree_goes_on_where_its_steps_are_cached(backend: LlamaBackend) -> None:
    handle = backend.submit(work(method="beam", n=8, width=4, max_tokens=48))
    last = deltas_of(backend, handle)[handle][-1]
    assert last.extra is not None and last.extra["spent"]["generated"] > 0
    stats = backend.stats()
    # Two steps at least of eight sequences, each sent with its whole path; fewer than 32 tokens of a step run again.
    assert stats.cached_tokens > 2 * stats.prompt_tokens


def test_the_conversation_used_last_keeps_its_cache_and_a_search_goes_on_from_it(backend: LlamaBackend) -> None:
    def chat() -> Delta:
        handle = backend.submit(Work(PROMPT, Sampling(temperature=0), 2, seed=1))
        return deltas_of(backend, handle)[handle][-1]

    chat()
    search = backend.submit(work(method="best_of_n", n=8))
    assert deltas_of(backend, search)[search][-1].cached == len(PROMPT) - 1
    assert chat().cached == len(PROMPT) - 1


@pytest.mark.parametrize("rows", [1, 2])
def test_a_chat_is_answered_while_a_search_runs_and_who_cancels_frees_all(
    gguf: Path,
    tiny_prm: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    from engine.prm import TorchVerifier

    closed: list[int] = []
    close = TorchVerifier.close
    monkeypatch.setattr(TorchVerifier, "close", lambda self, seqs: (closed.append(len(seqs)), close(self, seqs)))
    backend = backend_of(gguf, verifier=tiny_prm, rows=rows)
    search = backend.submit(work(method="best_of_n", n=200, max_tokens=100))
    while backend.stats().running == 0:
        told_by(backend)
    chat = backend.submit(Work(PROMPT, Sampling(), 4, seed=3))
    seen: list[Delta] = []
    while not any(delta.handle == chat and delta.last for delta in seen):
        seen += told_by(backend)
    assert not any(delta.handle == search and delta.last for delta in seen)
    backend.cancel(search)
    until(lambda: idle(backend))
    assert sum(closed) > 0 and not backend.busy and backend.turn() == []
    backend.cancel(search)
    again = backend.submit(work(method="majority", n=2))
    assert deltas_of(backend, again)[again][-1].error is None
    backend.close()


def test_who_opts_out_of_the_cache_finds_nothing_and_leaves_nothing(backend: LlamaBackend) -> None:
    for _ in range(2):
        handle = backend.submit(work(method="majority", n=5, cache=False))
        assert deltas_of(backend, handle)[handle][-1].cached == 0
    until(lambda: idle(backend))
    assert backend.stats().blocks_used == 0
    handle = backend.submit(work(method="majority", n=2))
    assert deltas_of(backend, handle)[handle][-1].cached == 0


def test_methods_that_ask_for_confidences_get_them(backend: LlamaBackend) -> None:
    handle = backend.submit(work(method="deepconf", n=4))
    last = deltas_of(backend, handle)[handle][-1]
    assert last.error is None and last.extra is not None and last.extra["spent"]["generated"] > 0


def test_what_llama_cpp_refuses_ends_that_search_alone(backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.llamaserver import LlamaError

    def fail(*_: Any, **__: Any) -> Any:
        raise LlamaError("no room")

    monkeypatch.setattr(backend._slots, "complete", fail)
    search = backend.submit(work(method="majority", n=6))
    chat = backend.submit(Work(PROMPT, Sampling(), 4, seed=3))
    told = deltas_of(backend, search, chat)
    assert told[search][-1].error == "search: llama.cpp refused a step: no room"
    assert told[chat][-1].finish is not None
    until(lambda: idle(backend))


def test_where_caches_cannot_be_copied_the_search_goes_on(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.llamaserver import LlamaError

    def fail(_: Any) -> None:
        raise LlamaError("no space left")

    monkeypatch.setattr(backend._server, "copy_slots", fail)
    with pytest.warns(UserWarning, match="no space left: sequences prefill"):
        handle = backend.submit(work(method="majority", n=6))
        assert deltas_of(backend, handle)[handle][-1].error is None
    assert backend.stats().prompt_tokens > 2 * len(PROMPT)


def test_the_tokenizer_in_the_file_is_that_of_the_folder(
    tiny_model: Path,
    gguf: Path,
    tiny_prm: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    from engine.prm import load_verifier
    from engine.prm_text import PassThrough
    from serve.gguf import fast_tokenizer

    folder, file = AutoTokenizer.from_pretrained(tiny_model), fast_tokenizer(gguf)
    assert set(file.all_special_ids) == {0, 1, 2, 3}
    ids = file.encode("Tom's 16 keys\n\n🌰<|im_end|>")
    assert ids == folder.encode("Tom's 16 keys\n\n🌰<|im_end|>")
    assert file.decode(ids, skip_special_tokens=True) == "Tom's 16 keys\n\n🌰"
    assert isinstance(load_verifier(tiny_prm, policy_tokenizer=file)._writer, PassThrough)
    # Where they differ it is the error of the torch engine.
    other = shutil.copytree(tiny_prm, tmp_path / "other")
    (other / "chat_template.jinja").unlink()
    for policy in (folder, file):
        with pytest.raises(ValueError, match="no chat template"):
            load_verifier(other, policy_tokenizer=policy)


# over HTTP


@pytest.fixture(scope="module")
def llama(gguf: Path, tiny_prm: Path) -> Iterator[Running]:  # noqa: F811
    settings = settings_of(gguf, engine="llamacpp", context=1024, rows=2, verifier=tiny_prm, search_budget=1 << 20)
    with running(settings) as server:
        yield server


ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "How many keys?"}],
    "max_tokens": 24,
    "seed": 7,
}


def test_a_client_sees_the_tree_grow_and_then_the_winner(llama: Running) -> None:
    search = {"search": {"method": "dvts", "n": 4, "width": 2, "max_step_tokens": 8}}
    stream = llama.client().chat.completions.create(
        **ASK, extra_body=search, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    shown = [chunk.model_extra["search"] for chunk in chunks if chunk.model_extra and "search" in chunk.model_extra]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    steps = {step["id"]: step for each in shown[:-1] for step in each["steps"] if "text" in step}
    assert len(shown) > 3 and "".join(steps[at]["text"] for at in shown[-1]["path"]) == text
    spent, usage = shown[-1]["spent"], chunks[-1].usage
    assert usage is not None and usage.completion_tokens == spent["generated"] + spent["scored"]
    whole = llama.client().chat.completions.create(**ASK, extra_body=search)
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1


def test_a_client_that_leaves_ends_its_search(llama: Running) -> None:
    body = ASK | {"stream": True, "max_tokens": 900, "search": {"method": "majority", "n": 256}}
    supervisor = llama.supervisor
    with httpx.stream("POST", f"{llama.url}/v1/chat/completions", json=body, timeout=PATIENCE) as stream:
        assert stream.status_code == 200
        until(lambda: supervisor.stats["running"] > 0)
        assert llama.client().chat.completions.create(**ASK).usage is not None
        assert supervisor.in_flight == 1
    until(lambda: supervisor.in_flight == 0 and supervisor.stats["running"] == 0)
    assert supervisor.stats["waiting"] == 0


def test_a_field_that_cannot_be_followed_is_400(llama: Running) -> None:
    for field, named in (
        ({"method": "dtvs"}, "did you mean 'dvts'"),
        ({"method": "beam", "n": 4, "verifier": "some/prm"}, "no registry"),
        ({"method": "beam", "n": 4, "step_delimiter": "\n"}, "trained on steps"),
    ):
        answer = llama.post("/v1/chat/completions", ASK | {"search": field})
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]


# slots


def job(handle: int, ids: list[int], step: bool = False) -> Job:
    return Job(handle, np.asarray(ids, np.int64), step)


def shares_of(held: list[list[int]], searching: bool = True) -> Shares:
    return Shares([np.asarray(ids, np.int64) for ids in held], lambda: searching)


def begin(shares: Shares, *jobs: Job) -> list[tuple[int, int | None]]:
    """Handle and slot of those that start."""
    for one in jobs:
        shares.waiting[one.step].append(one)
    return [(one.handle, one.slot) for grant in shares.grant() for one in grant.jobs]


def test_steps_leave_a_slot_for_chats_and_take_those_used_longest_ago() -> None:
    shares = shares_of([[1] * 50, [2] * 50, [3] * 50])
    steps = [job(n, [9] * 40, step=True) for n in range(4)]
    assert begin(shares, *steps) == [(0, 0), (1, 1)]
    assert begin(shares, job(7, [8])) == [(7, 2)]
    shares.give_back(steps[1])
    assert begin(shares) == [(2, 1)]


def test_where_both_wait_the_side_with_fewer_slots_gets_the_next() -> None:
    shares = shares_of([[]] * 4)
    started = begin(shares, *(job(n, [n], step=n >= 10) for n in (1, 2, 3, 10, 11, 12)))
    assert sorted(handle for handle, _ in started) == [1, 2, 10, 11]
    alone = shares_of([[]])
    turns = [job(1, [1]), job(2, [2]), job(10, [3], step=True), job(11, [4], step=True)]
    order = begin(alone, *turns)
    while running := [one for one in turns if one.slot is not None]:
        alone.give_back(running[0])
        order += begin(alone)
    assert [handle for handle, _ in order] == [1, 10, 2, 11]


def test_a_step_goes_where_its_path_is_and_new_chats_to_what_searches_left() -> None:
    shares = shares_of([[]] * 4, searching=False)
    first = [job(n, [5] * 40, step=True) for n in range(2)]
    begin(shares, *first)
    shares.held[:2] = [np.full(60, 5), np.asarray([5] * 40 + [6] * 20)]
    for one in first:
        shares.give_back(one)
    assert begin(shares, job(4, [5] * 40 + [6] * 21, step=True)) == [(4, 1)]
    shares.held[2] = np.full(30, 7)
    assert begin(shares, job(5, [8] * 9)) == [(5, 0)]


def test_steps_may_copy_from_the_slot_of_a_conversation() -> None:
    shares = shares_of([[], [], [4] * 90])
    shares.waiting[True].append(job(1, [4] * 91, step=True))
    [grant] = shares.grant()
    assert (grant.jobs[0].slot, grant.lent, shares.free) == (0, 2, [1])
    shares.return_lent(2)
    assert shares.free == [1, 2]
    assert begin(shares, job(2, [4] * 92)) == [(2, 2)]
