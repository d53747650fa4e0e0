"""The stages `filter`, `dedup` and `decontaminate`: what goes, why, and that nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from acorn.stage import Stage
from corpus.stage import DECONTAMINATE, DEDUP, FILTER
from corpus.writing import CorpusWriter
from tests.jobs import make_job, run_here

DATA = Path(__file__).parents[3] / "shared" / "data"
GOOD = (
    "The river rises in the hills to the north of the town, and it has been used to drive mills for over a thousand "
    "years. Most of the buildings that stand along its banks were built with stone from a quarry that lies two miles "
    "to the west. Today the quarry is a lake, with birds that come to it every winter from the cold lands beyond the "
    "sea. Visitors are asked to be quiet. There is a path around the water."
)


def corpus(folder: Path, train: list[str], validation: list[str] = (), source: str = "web") -> Path:
    folder.mkdir(parents=True)
    with CorpusWriter(folder) as writer:
        for text in train:
            writer.document("train", text, source)
        for text in validation:
            writer.document("validation", text, source)
    return folder


def make(stage: Stage, folder: Path, inputs: dict[str, Path], execution: Any = None, **config: Any) -> Path:
    job = make_job(stage, folder, config, execution, inputs)
    run_here(stage, job)
    return job.out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def removed(out: Path, *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(row[field] for field in ("id", *fields)) for row in read(out / "removed.jsonl")]


def kept(out: Path, part: str = "train") -> list[str]:
    return [row["text"] for path in sorted((out / part).glob("*.jsonl")) for row in read(path)]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def good(number: int) -> str:
    """Different enough from its neighbours that they are no duplicates of each other."""
    words = [f"{chr(97 + number % 26)}{word}" if index % 3 == 0 else word for index, word in enumerate(GOOD.split())]
    return " ".join(words) + f" It is visited by {number} people. The town of {number} houses is near."


def test_filters_remove_by_their_own_reasons_and_keep_what_they_remove(tmp_path: Path) -> None:
    shouting = " ".join(f"#{word}" for word in GOOD.split()[:30]) + GOOD
    short = " ".join(GOOD.split()[:40])
    texts = [GOOD, short, "the and of to be " * 40, shouting, f"{GOOD} lorem ipsum."]
    out = make(FILTER, tmp_path, {"corpus": corpus(tmp_path / "in", texts, [GOOD, short])})
    assert removed(out, "reason") == [
        ("validation-000000001", "gopher_short_doc"),
        ("train-000000001", "gopher_short_doc"),
        ("train-000000002", "top_2_gram"),
        ("train-000000003", "gopher_too_many_hashes"),
        ("train-000000004", "lorem_ipsum"),
    ]
    assert [row["text"] for row in read(out / "removed.jsonl")] == [short, *texts[1:]]
    assert kept(out) == kept(out, "validation") == [GOOD]
    left_out = json.loads((out / "stats.json").read_text())["left_out"]
    assert left_out["gopher_short_doc"] == 2 and sum(left_out.values()) == 5


def test_options_of_a_filter_are_datatroves_own_and_lines_cut_are_counted(tmp_path: Path) -> None:
    text = "too short to be good.\nThis line is about javascript and goes.\nfine words in this line."
    settings = [{"type": "C4QualityFilter", "min_num_sentences": 2}]
    out = make(FILTER, tmp_path, {"corpus": corpus(tmp_path / "in", [text])}, filters=settings)
    assert kept(out) == ["too short to be good.\nfine words in this line."]
    assert json.loads((out / "stats.json").read_text())["lines_cut"]["javascript"] == 1
    settings = [{"type": "C4QualityFilter", "min_num_sentences": -1}, {"type": "GopherQualityFilter"}]
    texts = [GOOD, "About javascript alone."]
    out = make(FILTER, tmp_path / "b", {"corpus": corpus(tmp_path / "in2", texts)}, filters=settings)
    assert removed(out, "reason") == [("train-000000001", "empty")]  # Gopher's would divide by its zero words


def test_documents_of_other_sources_and_the_problems_pass_untouched(tiny_corpus: Path, tmp_path: Path) -> None:
    out = make(FILTER, tmp_path / "a", {"corpus": tiny_corpus}, sources=["prose"])
    gone = {row["source"] for row in read(out / "removed.jsonl")}
    assert gone == {"prose"}
    for part in ("train", "validation"):
        before = [
            text
            for text, row in zip(kept(tiny_corpus, part), read(tiny_corpus / part / "00000.jsonl"), strict=True)
            if row["source"] != "prose"
        ]
        after = [row["text"] for row in read(out / part / "00000.jsonl") if row["source"] != "prose"]
        assert after == before
    for name in ("train", "test"):
        assert read(out / "problems" / f"{name}.jsonl") == read(tiny_corpus / "problems" / f"{name}.jsonl")
    with pytest.raises(ValueError, match=r"none called 'proze'; it has equations, problems, prose"):
        make(FILTER, tmp_path / "b", {"corpus": tiny_corpus}, sources=["proze"])
    with pytest.raises(ValueError, match="no train document is left"):
        make(
            FILTER,
            tmp_path / "c",
            {"corpus": tiny_corpus},
            filters=[{"type": "GopherQualityFilter", "min_doc_words": 9999}],
        )


def test_the_number_of_tasks_and_workers_changes_no_byte(tmp_path: Path) -> None:
    texts = [good(number) for number in range(100)] + [good(number) for number in range(0, 100, 7)] + ["short"] * 30
    texts += [good(number).replace("mills", "wheels") for number in range(3, 100, 11)]
    before = corpus(tmp_path / "in", texts, [good(5), good(80).replace("stone", "wood"), "held out"])
    for stage, more in ((FILTER, {}), (DEDUP, {}), (DECONTAMINATE, {"against": before})):
        outs = [
            make(stage, tmp_path / f"{stage.name}-{index}", {"corpus": before, **more}, execution)
            for index, execution in enumerate(({"tasks": 1}, {"tasks": 3, "workers": 1}, {"tasks": 5, "workers": 2}))
        ]
        assert files(outs[0]) == files(outs[1]) == files(outs[2])
        # A killed step may be started again with another number: its scratch folder still has the first one's marks.
        again = make(stage, tmp_path / f"{stage.name}-1", {"corpus": before, **more}, {"tasks": 2, "workers": 1})
        assert files(again) == files(outs[0])
        assert len(read(outs[0] / "removed.jsonl")) > 2


def test_dedup_keeps_the_first_of_equal_and_nearly_equal_texts_and_names_it(tmp_path: Path) -> None:
    near = good(1).replace("stone", "granite")
    texts = [good(0), "short", near, good(2), good(0), "short", good(1), good(2).replace("lake", "pond")]
    before = corpus(tmp_path / "in", texts, [good(1)])
    out = make(DEDUP, tmp_path / "a", {"corpus": before})
    assert removed(out, "reason", "duplicate_of") == [
        ("train-000000002", "near", "validation-000000000"),
        ("train-000000004", "exact", "train-000000000"),
        ("train-000000005", "exact", "train-000000001"),
        ("train-000000006", "exact", "validation-000000000"),
        ("train-000000007", "near", "train-000000003"),
    ]
    assert kept(out) == [good(0), "short", good(2)] and kept(out, "validation") == [good(1)]
    only_equal = make(DEDUP, tmp_path / "b", {"corpus": before}, minhash=None)
    assert [row["reason"] for row in read(only_equal / "removed.jsonl")] == ["exact"] * 3
    strict = make(
        DEDUP, tmp_path / "c", {"corpus": before}, exact=False, minhash={"num_buckets": 1, "hashes_per_bucket": 64}
    )
    assert (
        len(read(strict / "removed.jsonl")) < 5
    )  # one bucket of 64 hashes: nearly equal is not enough, "short" has none


def test_decontamination_removes_train_documents_with_a_run_of_words_of_the_evaluation(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    question = read(tiny_corpus / "problems" / "test.jsonl")[0]["question"]
    held_out = "Once upon a time a grey owl lived in a hollow tree and every night it counted 17 stars."
    texts = [
        good(0),
        f"Somebody wrote: {question.upper()}",  # the question of a test problem, in capitals
        good(1) + " grey owl lived in a hollow tree, and every night it counted 17 stars",
        good(2) + " grey owl lived in a hollow tree, and every night it counted 99 stars",
        good(3) + " a grey owl lived in a hollow tree",
    ]
    against = corpus(tmp_path / "against", ["train text"], [held_out, "short"])
    inputs = {"corpus": corpus(tmp_path / "in", texts, [held_out]), "against": tiny_corpus, "stories": against}
    out = make(DECONTAMINATE, tmp_path / "a", inputs)
    gone = read(out / "removed.jsonl")
    assert [(row["id"], row["found_in"]) for row in gone] == [
        ("train-000000001", "against-problems"),
        ("train-000000002", "stories-prose"),
    ]
    assert len(gone[1]["ngram"].split()) == 13 and gone[1]["ngram"].endswith("counted 17")
    assert kept(out, "validation") == [held_out]
    compared = json.loads((out / "stats.json").read_text())["compared_with"]
    assert compared["stories-prose"]["texts_too_short"] == 1
    stories = {"corpus": inputs["corpus"], "against": against}
    shorter = make(DECONTAMINATE, tmp_path / "b", stories, n_grams=7)
    assert len(read(shorter / "removed.jsonl")) == 3
    numbers_alike = make(DECONTAMINATE, tmp_path / "c", stories, norm_config={"norm_numbers": True})
    assert len(read(numbers_alike / "removed.jsonl")) == 2
    with pytest.raises(ValueError, match="no text of 13 words to compare with"):
        nothing = corpus(tmp_path / "nothing", ["train"], ["few words"])
        make(DECONTAMINATE, tmp_path / "d", stories | {"against": nothing})


@pytest.fixture(scope="module")
def classifier(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FineWeb-Edu-like model: one output, untrained."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=len(tokenizer),
            num_labels=1,
            pad_token_id=3,
            max_position_embeddings=64,
            initializer_range=1.0,
            **sizes,
        )
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_scores_each_document_and_keeps_those_above_its_threshold(
    classifier: Path, tiny_model: Path, tmp_path: Path
) -> None:
    texts = [good(number)[number : 400 - 3 * number] for number in range(70)]
    before = corpus(tmp_path / "in", texts)
    settings = {"filters": [], "classifier": {"model": str(classifier), "threshold": 0.0}}
    out = make(FILTER, tmp_path / "a", {"corpus": before}, {"tasks": 1}, **settings)
    scores = {row["text"]: row["score"] for row in read(out / "train" / "00000.jsonl") + read(out / "removed.jsonl")}
    assert set(scores) == set(texts)
    assert all(scores[text] >= 0 for text in kept(out)) and {"classifier_score"} == {
        row["reason"] for row in read(out / "removed.jsonl")
    }
    assert 0 < len(kept(out)) < 70

    from transformers import pipeline

    alone = pipeline("text-classification", str(classifier), function_to_apply="none", truncation=True, max_length=64)
    assert alone(texts[7])[0]["score"] == pytest.approx(scores[texts[7]], abs=2e-4)

    as_input = {"corpus": before, "classifier": classifier}
    again = make(
        FILTER, tmp_path / "b", as_input, {"tasks": 2, "workers": 1}, filters=[], classifier={"threshold": 0.0}
    )
    assert files(again) == files(out)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*not a model \.\.\.ForSequenceClassification"):
        make(FILTER, tmp_path / "c", as_input | {"classifier": tiny_model}, classifier={"threshold": 0.0})
    with pytest.raises(ValueError, match="exactly one of"):
        make(FILTER, tmp_path / "d", {"corpus": before}, classifier={"threshold": 0.0})
    with pytest.raises(ValueError, match="none of the model's labels"):
        make(FILTER, tmp_path / "e", as_input, filters=[], classifier={"threshold": 0.0, "label": "good"})


def test_a_second_classifiers_score_is_the_one_that_stands_with_what_it_removed(
    classifier: Path, tmp_path: Path
) -> None:
    inputs = {"corpus": corpus(tmp_path / "in", [good(number) for number in range(20)]), "classifier": classifier}
    everything = {"filters": [], "classifier": {"threshold": -1e9}}
    first = make(FILTER, tmp_path / "a", inputs, **everything)
    relabelled = corpus(tmp_path / "old", [])
    shutil.copytree(first, relabelled, dirs_exist_ok=True)
    shard = relabelled / "train" / "00000.jsonl"
    rows = read(shard)
    scores = {row["text"]: row["score"] for row in rows}
    shard.write_text("".join(json.dumps({**row, "score": 99.0}) + "\n" for row in rows), encoding="utf-8")
    middle = sorted(scores.values())[10]
    second = make(FILTER, tmp_path / "b", inputs | {"corpus": relabelled}, filters=[], classifier={"threshold": middle})
    gone = read(second / "removed.jsonl")
    assert gone and all(row["score"] == scores[row["text"]] < middle for row in gone)


def test_only_the_tasks_look_for_a_gpu_and_share_the_cores(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has asked for CUDA cannot fork others that use it."""
    import torch

    from corpus.config import PipelineExecution
    from corpus.datatrove import filters

    def look() -> bool:
        with (tmp_path / "looked").open("a") as file:
            file.write(f"{os.getpid()} ")
        return False

    monkeypatch.setattr(torch.cuda, "is_available", look)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (tmp_path / f"threads-{count}").touch())
    monkeypatch.setattr(filters, "available_cores", lambda: 6)
    inputs = {"corpus": corpus(tmp_path / "in", [good(number) for number in range(40)]), "classifier": classifier}
    make(FILTER, tmp_path / "a", inputs, {"tasks": 2, "workers": 2}, filters=[], classifier={"threshold": -1e9})
    lookers = set((tmp_path / "looked").read_text().split())
    assert len(lookers) == 2 and str(os.getpid()) not in lookers
    assert [path.name for path in tmp_path.glob("threads-*")] == ["threads-3"]
    monkeypatch.setattr(filters, "gpu_count", lambda: 2)
    workers = [
        filters.beside_a_classifier(PipelineExecution.model_validate(fields)).workers
        for fields in ({}, {"device": "cpu"}, {"workers": 4})
    ]
    assert workers == [1, None, 4]
