"""Search as a request field: what it takes and refuses, and that it is the same search, between other requests."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.interface import Sampling
from search.options import BestOfN, Dvts
from search.setup import Setup
from serve.backend import Delta, Work
from serve.search_field import Offer, Plan, read_search
from tests.search.conftest import tiny_prm  # noqa: F401
from tests.serve.servers import NAME, PATIENCE, Running, settings_of, until

OFFER = Offer(budget=4096, verifier=True)
PROMPT = tuple(range(20, 60))


def plan(field: dict[str, Any], max_tokens: int | None = None, offer: Offer = OFFER, temperature: float = 1.0) -> Plan:
    return read_search(field, max_tokens, offer, temperature)


def test_a_field_is_read_with_the_method_s_own_options() -> None:
    read = plan({"method": "dvts", "n": 8, "width": 2, "budget": 1000, "aggregation": "last"}, max_tokens=100)
    assert read.options_of() == Dvts(n=8, width=2)
    assert (read.budget, read.max_tokens, read.aggregation) == (1000, 100, "last")
    assert Plan.model_validate(read.model_dump()) == read


def test_what_is_not_said_is_the_default() -> None:
    read = plan({})
    assert (read.method, read.budget, read.max_tokens, read.verifier) == ("weighted", 4096, 256, None)
    assert plan({"method": "best_of_n", "budget": 100}).max_tokens == 50


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ({"method": "dtvs"}, "did you mean 'dvts'"),
        ({"method": 7}, "there is no '7'"),
        ({"method": ["dvts"]}, "there is no"),
        ({"method": "dvts", "widht": 2}, "did you mean 'width'"),
        ({"method": "majority", "width": 2}, "majority has no option 'width'"),
        ({"method": "dvts", "name": "beam"}, "no option 'name'"),
        ({"method": "dvts", "n": 6, "width": 4}, "multiple of width"),
        ({"method": "dvts", "n": [4, 8]}, "one whole number"),
        ({"n": 1000}, "the most is 256"),
        ({"n": "many"}, "one whole number"),
        ({"budget": 5000}, "this server allows 4096"),
        ({"budget": "all"}, "search.budget"),
        ({"verifier": 3}, "search.verifier"),
    ],
)
def test_a_field_that_cannot_be_followed_is_refused_by_name(field: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        plan(field)


def test_a_search_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a process reward model"):
        plan({"method": "beam"}, offer=replace(OFFER, verifier=False))
    assert plan({"method": "majority"}, offer=replace(OFFER, verifier=False)).method == "majority"
    with pytest.raises(ValueError, match="cannot pay for one solution"):
        plan({"method": "beam", "budget": 100}, max_tokens=100)
    with pytest.raises(ValueError, match="temperature 0"):
        plan({"method": "majority"}, temperature=0)


@pytest.fixture(scope="module")
def backend(tiny_model: Path, tiny_prm: Path) -> Any:  # noqa: F811
    from serve.torch import TorchBackend

    return TorchBackend(settings_of(tiny_model, verifier=tiny_prm, chunk=32, rows=8))


def work(seed: int = 5, **field: Any) -> Work:
    read = plan({"max_step_tokens": 8, **field}, max_tokens=24)
    return Work(PROMPT, Sampling(), read.max_tokens, seed, search=read.model_dump())


def deltas_of(backend: Any, *handles: int) -> dict[int, list[Delta]]:
    """All deltas of these handles, until each has its last."""
    told: dict[int, list[Delta]] = {handle: [] for handle in handles}
    for _ in range(5000):
        for delta in backend.turn():
            told[delta.handle].append(delta)
        if all(deltas and deltas[-1].last for deltas in told.values()):
            return told
    raise AssertionError(f"no end: {told}")


def offline(backend: Any, options: Any, seed: int) -> Any:
    """The same search by `search.methods`, on engines of its own."""
    from acorn.answers import Answers
    from engine.prm import load_verifier
    from engine.torch import TorchEngine
    from search.budget import Budget
    from search.methods import search
    from search.run import load_tokenizer
    from search.steps import StepSplitter

    settings = backend.settings
    tokenizer = load_tokenizer(settings.model)
    setup = Setup(Budget(24, 8, 4096), StepSplitter(tokenizer, "\n\n"), Answers())
    engine = TorchEngine(settings.model, dtype="float32")
    verifier = load_verifier(settings.verifier, policy_tokenizer=tokenizer, dtype="float32")
    [outcome] = search(engine, verifier, [list(PROMPT)], [seed], options, setup)
    return outcome, setup.splitter


@pytest.mark.parametrize(
    ("field", "options"),
    [({"method": "dvts", "n": 4, "width": 2}, Dvts(n=4, width=2)), ({"method": "best_of_n", "n": 4}, BestOfN(n=4))],
)
def test_it_is_the_search_of_the_library_token_for_token(backend: Any, field: dict[str, Any], options: Any) -> None:
    outcome, splitter = offline(backend, options, seed=5)
    handle = backend.submit(work(**field))
    deltas = deltas_of(backend, handle)[handle]
    last = deltas[-1]
    assert last.extra is not None and last.error is None
    assert last.extra["spent"] == {"generated": outcome.spent.generated, "scored": outcome.spent.scored}
    assert last.count == outcome.spent.total
    steps: dict[int, dict[str, Any]] = {}
    for delta in deltas[:-1]:
        for step in (delta.extra or {}).get("steps", []):
            steps.setdefault(step["id"], {}).update(step)
    assert [steps[at]["text"] for at in range(len(steps))] == [splitter.text(node.ids) for node in outcome.nodes]
    assert [steps[at]["score"] for at in range(len(steps))] == pytest.approx(
        [node.score for node in outcome.nodes], abs=1e-4
    )
    told = "".join(delta.text or "" for delta in deltas)
    whole = [token for at in last.extra["path"] for token in outcome.nodes[at].ids]
    assert told == splitter.text(whole)
    assert sum(delta.text is not None and not delta.last for delta in deltas) == len(last.extra["path"])


def test_others_are_answered_while_searches_run_and_a_third_waits(backend: Any) -> None:
    plain = backend.submit(Work(PROMPT, Sampling(), 12, seed=3))
    searches = [backend.submit(work(seed, method="beam", n=4, width=2)) for seed in (1, 2, 3)]
    told = deltas_of(backend, plain, *searches)
    assert sum(len(delta.ids) for delta in told[plain]) <= 12
    assert all(told[handle][-1].finish in ("stop", "length") for handle in searches)
    alone = backend.submit(work(2, method="beam", n=4, width=2))
    again = deltas_of(backend, alone)[alone]
    assert "".join(d.text or "" for d in again) == "".join(d.text or "" for d in told[searches[1]])
    assert not backend.busy


def test_its_prompt_is_found_in_the_prefix_cache(backend: Any) -> None:
    handle = backend.submit(work(11, method="best_of_n", n=2))
    assert deltas_of(backend, handle)[handle][-1].cached >= 32


def test_a_worker_says_that_it_loads_a_verifier(backend: Any) -> None:
    from serve.verifiers import Verifiers

    said: list[str] = []
    verifiers = Verifiers(backend.settings, None, lambda: said.append("loading"))
    first = verifiers.load(backend.settings.verifier)
    assert verifiers.load(backend.settings.verifier) is first
    assert said == ["loading"]


def test_a_cancelled_search_frees_all_it_holds(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    handle = backend.submit(work(method="dvts", n=8, width=4))
    for _ in range(12):
        backend.turn()
    [run] = backend._searches._running.values()
    verifier, close = run.verifier, run.verifier.close
    monkeypatch.setattr(verifier, "close", lambda seqs: (closed.append(len(seqs)), close(seqs)))
    backend.cancel(handle)
    assert sum(closed) > 0
    assert not backend.busy
    assert backend.stats().running == backend.stats().waiting == 0
    assert backend.turn() == []
    backend.cancel(handle)


def test_one_that_fails_says_why_and_leaves_the_others(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.prm import TorchVerifier

    good = backend.submit(work(method="majority", n=2))
    bad = backend.submit(work(method="best_of_n", n=2))

    def fail(*_: Any) -> Iterator[Any]:
        raise ValueError("the text is over the verifier's context")

    monkeypatch.setattr(TorchVerifier, "read", fail)
    told = deltas_of(backend, good, bad)
    assert told[bad][-1].error == "search: the text is over the verifier's context"
    assert told[good][-1].finish is not None
    assert not backend.busy


def test_a_prompt_too_long_for_the_verifier_is_refused(backend: Any) -> None:
    long = replace(work(method="best_of_n", n=1), ids=tuple([20] * 1010))
    handle = backend.submit(long)
    assert "verifier's context" in str(deltas_of(backend, handle)[handle][-1].error)


def test_a_long_prompt_is_read_by_the_verifier_in_chunks_between_others_tokens(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.cache import KVTree

    backend._search()._verifiers.load(backend.settings.verifier)
    read: list[int] = []
    extend = KVTree.extend

    def note(self: KVTree, prefixes: Any, ids: Any, last: int = 1) -> Any:
        read.append(max(map(len, ids)))
        return extend(self, prefixes, ids, last)

    monkeypatch.setattr(KVTree, "extend", note)
    search = backend.submit(replace(work(method="best_of_n", n=1), ids=PROMPT * 8))
    plain = backend.submit(Work(PROMPT, Sampling(), 8, seed=3))
    told: list[tuple[int, int]] = []
    while backend.busy:
        told += [(delta.handle, len(read)) for delta in backend.turn()]
    assert read[:10] == [32] * 10
    assert max(read) <= 32
    assert len({chunks for handle, chunks in told if handle == plain}) > 1
    assert told[-1][0] == search


def test_a_verifier_that_is_none_is_refused(backend: Any, tmp_path: Path) -> None:
    from registry import Registry
    from serve.verifiers import Verifiers, delimiter_of

    with pytest.raises(ValueError, match="no registry"):
        backend.submit(work(method="beam", n=4, verifier="some/prm"))
    named = Verifiers(settings_of(tmp_path, home=Registry(tmp_path / "home").home), None, lambda: None)
    for ref in ("some/prm", "/etc", "../x"):
        with pytest.raises(ValueError, match=r"search\.verifier"):
            named.find(ref)
    with pytest.raises(ValueError, match="trained on steps"):
        delimiter_of(backend.settings.verifier, "\n")


def test_the_command_finds_a_verifier_or_says_that_there_is_none(backend: Any, tmp_path: Path) -> None:
    from registry import Registry, Spec
    from serve.command import verifier_of

    registry, model, own = Registry(tmp_path), str(backend.settings.model), backend.settings.verifier
    assert verifier_of(registry, Namespace(verifier=None, model=model)) is None
    assert verifier_of(registry, Namespace(verifier=None, model="somewhere/m.gguf")) is None
    assert verifier_of(registry, Namespace(verifier=str(own), model=model)) == own
    made: dict[str, Any] = {}
    for name, kind, source in (
        ("large", "model", None),
        ("model", "model", None),
        ("own", "prm", "model"),
        ("newest", "prm", "large"),
        ("gguf", "gguf", "model"),
    ):
        of = {} if source is None else {"model": made[source]}
        with registry.build(Spec("toy", 1, kind, {"name": name}, inputs=of)) as build:
            (build.out / "a.bin").write_bytes(name.encode())
            made[name] = build.publish()
    assert verifier_of(registry, Namespace(verifier=None, model=made["gguf"].key)) == made["own"].path
    with pytest.raises(FileNotFoundError, match="no/prm"):
        verifier_of(registry, Namespace(verifier="no/prm", model=model))


ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "How many keys?"}],
    "max_tokens": 24,
    "seed": 7,
}


def test_a_client_sees_the_tree_grow_and_then_the_winner(served: Running) -> None:
    search = {"search": {"method": "majority", "n": 3}}
    whole = served.client().chat.completions.create(**ASK, extra_body=search)
    stream = served.client().chat.completions.create(
        **ASK, extra_body=search, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    shown = [chunk.model_extra["search"] for chunk in chunks if chunk.model_extra and "search" in chunk.model_extra]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert shown[-1] == whole.model_extra["search"]
    steps = [step for each in shown[:-1] for step in each["steps"]]
    assert len({step["id"] for step in steps}) >= 3
    assert "".join(step["text"] for at in shown[-1]["path"] for step in steps if step["id"] == at) == text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == shown[-1]["spent"]["generated"] == whole.usage.completion_tokens


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"search": {"method": "majorty"}}, "did you mean 'majority'"),
        ({"search": {"method": "dvts"}}, "needs a process reward model"),
        ({"search": {"method": "majority"}, "n": 2}, "n exclude each other"),
        ({"search": {"method": "majority"}, "response_format": {"type": "json_object"}}, "response_format"),
        ({"search": {"method": "majority"}, "temperature": 0}, "temperature 0"),
        ({"search": {"method": "majority", "budget": 1 << 40}}, "allows"),
    ],
)
def test_a_search_that_cannot_be_done_is_400(served: Running, extra: dict[str, Any], named: str) -> None:
    answer = served.post("/v1/chat/completions", ASK | extra)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "search"


def test_a_client_that_leaves_ends_its_search(served: Running) -> None:
    body = ASK | {"stream": True, "max_tokens": 900, "search": {"method": "majority", "n": 256}}
    supervisor = served.supervisor
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE) as stream:
        assert stream.status_code == 200
        until(lambda: supervisor.stats["running"] > 0)
        assert supervisor.in_flight == 1
    until(lambda: supervisor.in_flight == 0 and supervisor.stats["running"] == 0)
    assert supervisor.stats["waiting"] == 0
