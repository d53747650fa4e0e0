"""What each filter finds, and that what it finds is kept with its reason."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synth.jail
from acorn.answers import Answers
from acorn.stage import Ancestor
from synth.budget import affordable, within_tokens
from synth.conditions import KINDS, broken, draw, say
from synth.config import Budget, Decontaminate
from synth.embedding import embed, repeats
from synth.filter_config import Filters, Overlap, Tags
from synth.filters import is_refusal, repetition, sift
from synth.held_out import held_out, too_close
from synth.jail import BROKEN, UNSAFE
from synth.language import language_of
from synth.making_config import RewriteConfig, Sandbox, SummariseConfig
from synth.rating import Rating, read_tags, reason_of
from synth.results import code_of, path_of, path_of_code
from synth.sandbox import Verdict, run_all, run_tests
from synth.stage import MAGPIE
from synth.texts import rewrite_reason, summary_reason
from tests.jobs import make_job
from tests.synth.worlds import problem, write_corpus


def row(answer: str, question: str = "Tell me about the sea.", name: str = "a") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns, "source": "x", "level": 0}


GOOD = "The sea covers most of the planet, and in it live more kinds of animals than on all of the land."


def test_a_rejected_row_carries_the_reason_of_the_first_filter_that_objected(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [], [problem(7)])
    rows = [
        row(GOOD, name="kept"),
        row("Das Meer ist groß und es ist tief, und die Fische sind nicht zu zählen.", name="language"),
        row("Yes.", name="too_short"),
        row(GOOD + " and so on and on" * 20, name="too_long"),
        row("The sea is here.\n" * 6, name="repetition"),
        row("I'm sorry, but I can't help with that request about the sea.", name="refusal"),
        row(GOOD + " Indeed.", problem(7)["question"].replace("?", " ?"), name="contaminated"),
        row(GOOD.upper(), name="duplicate"),
        row(GOOD + " So they say.", name="near_duplicate"),
    ]
    filters = Filters.model_validate(
        {
            "language": {"keep": ["en"]},
            "length": {"min_words": 3, "max_words": 60},
            "minhash": {"tokenizer": "ngrams", "n": 5, "threshold": 0.7},
        }
    )
    sieve = sift(rows, filters, held_out(make_job(MAGPIE, tmp_path, {"rows": 1}, inputs={"corpus": corpus}), Overlap()))
    assert [each["id"] for each in sieve.kept] == ["kept"]
    found = {each["id"]: each["reason"] for each in sieve.rejected}
    assert found.pop("contaminated") == "contaminated"
    assert found == {name: name for name in found} and len(found) == len(rows) - 2


def test_an_evaluation_set_without_texts_is_an_error(tmp_path: Path) -> None:
    job = make_job(MAGPIE, tmp_path, {"rows": 1}, inputs={"model": tmp_path, "tests": tmp_path})
    with pytest.raises(FileNotFoundError, match=r"tests: .* has neither"):
        held_out(job, Overlap())


PROSE = "The old harbour town of the north lies behind a wall of grey stone that the sea has never come over"


def test_the_reason_names_the_set_wherever_in_inputs_and_lineage_it_lies(tmp_path: Path) -> None:
    own = write_corpus(tmp_path / "own", [], [problem(1)])
    (own / "validation").mkdir()
    (own / "validation" / "0.jsonl").write_text(
        json.dumps({"text": PROSE, "source": "prose"}) + "\n" + json.dumps({"text": GOOD, "source": "equations"}) + "\n"
    )
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "items.jsonl").write_text(json.dumps({"set": "gsm8k|5", "text": problem(2)["question"]}))
    far = write_corpus(tmp_path / "far", [], [problem(3)])
    ancestors = (
        Ancestor("corpus", "text", "sha256:0123456789", far, ("model",), ("tokens",)),
        Ancestor("corpus", "filter", "sha256:f", None, ("model",), ("tokens",)),
    )
    job = make_job(MAGPIE, tmp_path, {"rows": 1}, inputs={"corpus": own, "model": tmp_path, "eval": tmp_path / "asked"})
    tests = held_out(dataclasses.replace(job, ancestors=ancestors), Overlap())
    assert too_close(["", problem(1)["question"]], tests) == "contaminated"
    assert too_close([PROSE + " at all."], tests) == "contaminated: corpus/validation"
    assert too_close([problem(2)["question"].upper()], tests) == "contaminated: gsm8k|5"
    assert too_close([problem(3)["question"]], tests) == "contaminated: text 01234567/problems"
    assert too_close([problem(4)["question"], GOOD], tests) is None, "bits per byte are measured on prose alone"
    problems_alone = held_out(job, Decontaminate(), prose=False)
    assert too_close([PROSE], problems_alone) is None and too_close([problem(1)["question"]], problems_alone)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("It was the best of times and it was the worst of times for all of us.", "en"),
        ("Es war einmal ein König, der hatte eine Tochter und die war sehr schön.", "de"),
        ("Il était une fois un roi qui avait une fille, et elle était dans le château.", "fr"),
        ("Había una vez un rey que vivía en el bosque con su hija y los animales.", "es"),
        ("Жил-был царь, и были там три сына, и все они были умны.", "ru"),
        ("むかしむかし、あるところにおじいさんとおばあさんがいました。", "ja"),
        ("从前有一个国王,他有三个儿子。", "zh"),
        ("x = 3 * y + 4; print(x)", None),
        ("42", None),
    ],
)
def test_a_paragraph_shows_its_language_and_a_formula_none(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_refusals_are_told_from_sympathy() -> None:
    for text in (
        "I'm sorry, but I can't assist with that.",
        "I cannot help you build this.",
        "As an AI language model, I don't have opinions.",
        "Sorry, I am unable to do so.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I can\N{RIGHT SINGLE QUOTATION MARK}t do that.",
    ):
        assert is_refusal(text), text
    for text in ("I'm sorry to hear that. Here is what helps.", "You cannot divide by zero.", "Of course I can help."):
        assert not is_refusal(text), text


def test_repetition_is_a_share_of_copies() -> None:
    assert repetition("one two three four five", 2) == (0, 0)
    grams, lines = repetition("go on\n" * 4, 2)
    assert grams == pytest.approx(5 / 7)
    assert lines == pytest.approx(3 / 4)


def test_tags_are_read_or_reject_the_row() -> None:
    read = read_tags("**Difficulty:** 3\n- quality: 4/5\nSafety: unsafe.")
    assert read == Rating(3, 4, safe=False)
    assert read_tags("quality: 4\nsafety: safe") is None
    assert read_tags("difficulty: 7\nquality: 4\nsafety: safe") is None
    config = Tags.model_validate({"llm": {"type": "openai"}, "min_quality": 3, "difficulty": [2, 4]})
    assert reason_of(None, config) == "unreadable_tags"
    assert reason_of(Rating(3, 4, False), config) == "unsafe"
    assert reason_of(Rating(3, 2, True), config) == "low_quality"
    assert reason_of(Rating(1, 4, True), config) == "difficulty"
    assert reason_of(Rating(2, 3, True), config) is None


def test_of_rows_near_in_meaning_the_first_stays(tiny_model: Path) -> None:
    vectors = np.array([[1, 0], [0, 1], [0.99, 0.1], [0.6, 0.8], [0, 1]], np.float32)
    assert repeats(vectors, 0.95, block=2) == [False, False, True, False, True]
    assert repeats(vectors, 0.75, block=2) == [False, False, True, True, True]
    # b is near a and c near b, but c is not near a: with b gone, c stays.
    chain = np.array([[1, 0], [0.8, 0.6], [0.28, 0.96]], np.float32)
    assert repeats(chain, 0.75) == [False, True, False]
    embedded = embed(["Ida has 3 apples.", "Ida has 3 apples.", "", "There is a boat."], str(tiny_model), "cpu", 3)
    assert np.allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    assert np.allclose(embedded[0], embedded[1], atol=1e-5)
    assert not np.allclose(embedded[0], embedded[3], atol=1e-3)


def test_a_budget_pays_for_the_first_prompts() -> None:
    assert affordable(None, [1] * 3) == affordable(Budget(), [1] * 3) == 3
    assert affordable(Budget(calls=5), [2, 2, 2]) == 2
    assert within_tokens(Budget(tokens=10), [6, 6, 6]) == 2
    assert within_tokens(Budget(tokens=12), [6, 6, 6]) == 2


FITS: dict[str, tuple[str, str]] = {
    "min_words": ("word " * 130, "Too few."),
    "max_words": ("Few words.", "word " * 130),
    "max_sentences": ("One only.", "One. Two! Three? Four. Five. Six."),
    "paragraphs": ("", "one\n\ntwo\n\nthree\n\nfour\n\nfive"),
    "include_word": ("", "Nothing of it."),
    "forbid_word": ("Nothing.", "very really also however and important"),
    "word_count": ("", "Nothing of it."),
    "lowercase": ("all small.", "Not all."),
    "uppercase": ("ALL LARGE.", "Not all."),
    "capital_words": ("ONE TWO THREE are", "None A"),
    "no_comma": ("No such thing.", "One, two."),
    "bullets": ("", "* one"),
    "sections": ("", "Section 2\nb\nSection 1\na"),
    "title": ("<<A title>>\nText.", "A title\nText."),
    "placeholders": ("[a] [b] [c]", "none"),
    "highlights": ("*a* *b b* *c*", "* a list"),
    "postscript": ("Text.\n\nP.S. More.", "P.S. first\n\nand then text"),
    "starts_with": ("", "Well, no."),
    "ends_with": ("", "Well, no."),
    "quotes": ('"All of it."', 'Not "all" of it'),
    "json": ('```json\n{"a": [1]}\n```', "{a: 1}"),
}


def test_every_kind_of_condition_is_kept_by_what_keeps_it_alone() -> None:
    assert set(FITS) == set(KINDS)
    for seed in range(3):
        for kind, (keeps, breaks) in FITS.items():
            from random import Random

            condition = {"kind": kind, **KINDS[kind].draw(Random(seed))}
            made = {
                "paragraphs": lambda c: "\n\n".join(["text"] * c["paragraphs"]),
                "include_word": lambda c: f"The {c['word']}.",
                "word_count": lambda c: f"{c['word']} " * c["times"],
                "bullets": lambda c: "* point\n" * c["bullets"],
                "sections": lambda c: "\n".join(f"Section {i + 1}\ntext" for i in range(c["sections"])),
                "starts_with": lambda c: f"{c['phrase']} yes.",
                "ends_with": lambda c: f"Yes. {c['phrase']}\n",
            }
            text = made[kind](condition) if kind in made else keeps
            assert broken(text, [condition]) == [], (kind, condition)
            assert broken(breaks, [condition]) == [kind], (kind, condition)
            assert say([condition])


def test_conditions_that_go_together_are_drawn_and_the_same_each_time() -> None:
    from random import Random

    for seed in range(200):
        chosen = draw(Random(seed), 3)
        kinds = [each["kind"] for each in chosen]
        assert 1 <= len(set(kinds)) == len(kinds) <= 3
        assert not any(other in KINDS[kind].clashes for kind in kinds for other in kinds)
        assert "json" not in kinds or kinds == ["json"]
        assert json.dumps(draw(Random(seed), 3)) == json.dumps(chosen)


def test_what_a_program_sees_of_a_bad_text() -> None:
    text = "The train left at 9:30 with 40 people, and it came to the city late in the evening of that day."
    rewriting, summary = RewriteConfig(), SummariseConfig()
    assert rewrite_reason(text, text.lower() + "!", "friendly", rewriting) == "unchanged"
    assert rewrite_reason(text, text + " Indeed.", "concise", rewriting) == "not_shorter"
    assert rewrite_reason(text, text * 3, "friendly", rewriting) == "too_long"
    assert rewrite_reason(text, "Late in the evening 40 people came.", "concise", rewriting) is None
    assert summary_reason(text, text, summary) == "not_shorter"
    assert summary_reason(text, "The train left at 9:30 with 40 people", summary) == "copied"
    assert summary_reason(text, "A train with 50 people was late.", summary) == "new_number"
    assert summary_reason(text, "A train with 40 people was late.", summary) is None


def test_results_are_compared_by_value() -> None:
    with Answers(limit=300) as results:
        assert results.same("1200", "1,200.0")
        assert results.same(r"\frac{1}{2}", "0.5")
        assert not results.same(r"\frac{1}{2}", r"\frac{1}{3}")
        assert not results.same("7", "x")


def test_what_kills_the_comparing_process_is_different_and_the_next_gets_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(
        "print('ready', flush=True)\nif 'fatal' not in input():\n    print('true', flush=True)\n    input()\n"
    )
    monkeypatch.setattr("acorn.answers._WORKER", tmp_path / "worker.py")
    with Answers(limit=300) as results:
        assert [results.same("x", "fatal"), results.same("x", "y")] == [False, True]


def test_ways_are_equal_in_other_words_and_other_names() -> None:
    assert path_of("First we add: 3+4=7\n\n#### 7") == path_of("I take 3 + 4 = 7.\n\n#### 7")
    assert path_of("3+4=7") != path_of("4+3=7")
    assert path_of("No sum") != path_of("Another")
    one, two = "def f(a):\n    '''Twice.'''\n    return a * 2", "def g(x: int) -> int:\n    return x * 2  # twice"
    assert path_of_code(one) == path_of_code(two) != path_of_code("def f(a):\n    return a + a")
    assert path_of_code("def f(a):\n    return min(a)") != path_of_code("def f(a):\n    return max(a)")
    assert path_of_code(deep := "x = " + " + ".join("1" * 900)) == deep
    assert code_of("Text\n```python\nx = 1\n```") == "x = 1\n"
    assert code_of("I do not know.") is None and code_of("```python\nx =\n```") is None


LIMITS = Sandbox(seconds=100, memory_mb=128)
"""Seconds that no program here takes on the busiest machine, but for the one that shall be too slow."""


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        ("def f():\n    return 1", None, ""),
        ("import sys\nsys.exit(0)", "failed_tests", ""),
        ("import os\nos.fork()", "failed_tests", "BlockingIOError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 1), 1)", "failed_tests", "unreachable"),
        ("open('/tmp/file', 'w').write('x')", "failed_tests", "Read-only"),
        ("import os\nos.remove(os.__file__)", "failed_tests", "Read-only"),
        ("x = bytearray(10**9)", "out_of_memory", "MemoryError"),
        ("while True:\n    print('x' * 10**5)", "too_much_output", "x"),
        (f"import os\nos._exit({UNSAFE})", "failed_tests", ""),  # not what the walls themselves say
        (f"import os\nos._exit({BROKEN})", "failed_tests", ""),
    ],
)
def test_a_program_can_do_no_harm(code: str, reason: str | None, said: str) -> None:
    verdict = run_tests(code, "assert f() == 1", LIMITS)
    assert verdict.reason == reason and said in verdict.output


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("code", ["import time\ntime.sleep(600)", "while True: pass"])
def test_a_program_that_takes_too_long_is_ended(code: str) -> None:
    assert run_tests(code, "", LIMITS.model_copy(update={"seconds": 0.5})).reason == "too_slow"


def test_a_machine_that_cannot_isolate_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import synth.sandbox

    monkeypatch.setattr(synth.sandbox, "_run", lambda program, limits: ("", None, UNSAFE))
    with pytest.raises(RuntimeError, match=r"sandbox\.isolation: best_effort"):
        run_tests("", "", LIMITS)


@pytest.mark.usefixtures("namespaces")
def test_a_program_ends_with_the_process_that_started_it() -> None:
    jail = [os.path.realpath(sys.executable), "-I", "-S", synth.jail.__file__, json.dumps(LIMITS.model_dump())]
    with subprocess.Popen(jail, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"import time\nprint('here', flush=True)\ntime.sleep(600)\n")
        process.stdin.close()
        assert process.stdout.readline() == b"here\n"
        process.kill()  # so it goes to it when acorn is killed: nobody is left to end the group
        ended = selectors.DefaultSelector()
        ended.register(process.stdout, selectors.EVENT_READ)
        assert ended.select(300) and process.stdout.read() == b"", "the program still holds its output open"


@pytest.mark.usefixtures("namespaces")
def test_verdicts_come_in_the_order_of_the_programs() -> None:
    found = run_all([("x = 1", "assert x == 1"), ("x = 2", "assert x == 1")], LIMITS)
    assert [each.reason for each in found] == [None, "failed_tests"] and isinstance(found[0], Verdict)
