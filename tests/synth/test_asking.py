"""Who answers and what it costs: servers that are away or slow, the cache, the budget, judges, other engines."""

from __future__ import annotations

import inspect
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distilabel.pipeline.ray import RayPipeline
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from engine.torch import TorchEngine
from export.gguf import write_gguf
from synth.cache import ResponseCache, response_key
from synth.check import check, check_making
from synth.config import ChatDataConfig, ChatExecution, JudgeRank
from synth.distilabel import generate, make_llm, ray_arguments, reward
from synth.distilabel.models import GgufTokenizer
from synth.distilabel.pipeline import _make_pipeline
from synth.making_config import MagpieConfig, MakingExecution, RewriteConfig
from synth.ranking import _prompts as prompts_of
from synth.ranking import make_pair
from synth.roles import check_making as check_making_roles
from synth.roles import check_pairs
from synth.stage import CHAT_DATA, PREFERENCE_PAIRS, REWRITE
from tests.jobs import make_job, run_here
from tests.synth.conftest import Scripted
from tests.synth.test_making import NO_REPEATS, mail, reasons, texts_corpus
from tests.synth.worlds import files, problem, rows, write_corpus

TONE = {"friendly": "Make it friendlier."}


def rewriting(server: Scripted, **more: Any) -> dict[str, Any]:
    return {"llm": server.llm(), "min_words": 5, "tones": TONE, "filters": NO_REPEATS, **more}


def test_a_server_that_is_away_is_named_before_any_work(tmp_path: Path) -> None:
    corpus = texts_corpus(tmp_path / "corpus", mail(1))
    config = {"llm": {"type": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}, "min_words": 5}
    job = make_job(REWRITE, tmp_path, config, {}, {"corpus": corpus})
    with pytest.raises(ConnectionError, match=r"no server answers at http://127\.0\.0\.1:9/v1/models .*llm\.base_url"):
        run_here(REWRITE, job)
    assert not list(job.scratch.iterdir())


def test_an_answer_is_asked_for_once_and_a_timeout_is_a_reason_and_not_remembered(
    scripted_server: Scripted, tmp_path: Path
) -> None:
    texts = [*map(mail, range(3)), mail(3, "SLOW")]
    corpus = texts_corpus(tmp_path / "corpus", *texts)
    llm = scripted_server.llm(timeout=6)  # of which an answer takes some ms
    outs = []
    before = len(scripted_server.asked())
    for again in range(2):
        staging = tmp_path / "home" / "staging" / str(again)
        job = make_job(
            REWRITE, staging, rewriting(scripted_server, llm=llm, max_parse_failures=0.3), {}, {"corpus": corpus}
        )
        metrics = run_here(REWRITE, job)
        outs.append(job.out)
        assert reasons(job.out) == {"timeout": 1} and metrics["synth/parse_failures"] == 0.25
    assert files(outs[0]) == files(outs[1])
    asked = scripted_server.asked()[before:]
    assert [asked.count(text) for text in texts] == [1, 1, 1, 2]
    assert (tmp_path / "home" / "cache" / "responses.sqlite").exists()


def test_the_cache_tells_apart_all_that_decides_about_an_answer(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    key = response_key("m", messages, "", 1, {"temperature": 1.0})
    others = {
        response_key("n", messages, "", 1, {"temperature": 1.0}),
        response_key("m", [*messages, *messages], "", 1, {"temperature": 1.0}),
        response_key("m", messages, "row", 1, {"temperature": 1.0}),
        response_key("m", messages, "", 2, {"temperature": 1.0}),
        response_key("m", messages, "", 1, {"temperature": 0.9}),
    }
    assert len(others) == 5 and key not in others
    cache = ResponseCache(tmp_path / "cache.sqlite")
    cache.write({key: "first"})
    cache.write({key: "second"})
    other = ResponseCache(tmp_path / "cache.sqlite")
    assert other.read([key, *others] * 200) == {key: "first"}
    cache.close()
    other.close()


def texts_of(size: int, *names: str) -> dict[str, str]:
    return {name: f"{name} " + "x" * size for name in names}


def test_of_a_full_cache_the_least_recently_used_responses_make_room(tmp_path: Path) -> None:
    path, most = tmp_path / "cache.sqlite", 400_000
    cache = ResponseCache(path, most)
    names = [f"{number:04d}" for number in range(400)]
    for start in range(0, 400, 20):
        cache.write(texts_of(2000, *names[start : start + 20]))
        assert cache.read(["0000"]), "it is used again and again"
        assert path.stat().st_size < 1.2 * most
    kept = sorted(cache.read(names))
    assert kept[0] == "0000" and kept[1:] == names[400 - len(kept) + 1 :] and 20 < len(kept) < 200
    cache.close()
    small = ResponseCache(path, 100_000)
    assert 0 < len(small.read(names)) < len(kept), "a smaller limit counts from the start"
    small.write(texts_of(300_000, "huge"))
    assert small.read(names) == {}, "what is larger than the limit is not kept, and nothing hangs"
    small.close()
    assert path.stat().st_size < 100_000


def test_a_cache_from_before_there_was_a_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE responses (key TEXT PRIMARY KEY, response TEXT NOT NULL)")
        old.execute("INSERT INTO responses VALUES ('known', 'answer')")
    old.close()
    caches = [ResponseCache(path, 10**6), ResponseCache(path)]
    assert [cache.read(["known"]) for cache in caches] == [{"known": "answer"}] * 2
    for cache in caches:
        cache.close()


FILLING = """
import sys
from pathlib import Path
from synth.cache import ResponseCache
cache = ResponseCache(Path(sys.argv[1]), 200_000)
print("open", flush=True)
for number in range(10**6):
    names = [f"{sys.argv[2]}-{number}-{part}" for part in range(10)]
    cache.write({name: name * 100 for name in names})
    found = cache.read(names)
    assert all(response == name * 100 for name, response in found.items())
    print(number, flush=True)
"""


def test_two_processes_fill_one_cache_and_a_kill_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    fillers = [
        subprocess.Popen([sys.executable, "-c", FILLING, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    try:
        for filler in fillers:  # both at work at once, each well beyond the limit
            assert filler.stdout is not None
            assert any(line == "30\n" for line in filler.stdout), "a filler ended by itself"
        fillers[0].kill()
        fillers[0].wait()
        assert fillers[1].stdout is not None
        assert any(line == "60\n" for line in fillers[1].stdout), "the other one goes on"
    finally:
        for filler in fillers:
            filler.kill()
            filler.communicate()
    cache = ResponseCache(path, 200_000)
    names = [f"{who}-{number}-{part}" for who in ("one", "two") for number in range(2000) for part in range(10)]
    found = cache.read(names)
    assert found and all(response == name * 100 for name, response in found.items())
    cache.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_cache_that_keeps_next_to_nothing_changes_no_row(scripted_server: Scripted, tmp_path: Path) -> None:
    corpus = texts_corpus(tmp_path / "corpus", *map(mail, range(6)))
    outs = []
    for number, size in enumerate([None, 1e-9]):
        job = make_job(
            REWRITE, tmp_path / str(number), rewriting(scripted_server), {"cache_size": size}, {"corpus": corpus}
        )
        run_here(REWRITE, job)
        outs.append(files(job.out))
    assert outs[0] == outs[1]


def test_prompts_beyond_the_budget_are_rejected_whatever_the_shards(scripted_server: Scripted, tmp_path: Path) -> None:
    corpus = texts_corpus(tmp_path / "corpus", *map(mail, range(8)))
    found = []
    # Each answer has 7 tokens: the third crosses the line, and is paid.
    for number, (budget, size) in enumerate([({"tokens": 15}, 2), ({"tokens": 15}, 64), ({"calls": 3}, 64)]):
        config = rewriting(scripted_server, budget=budget)
        job = make_job(REWRITE, tmp_path / str(number), config, {"shard_size": size}, {"corpus": corpus})
        run_here(REWRITE, job)
        assert reasons(job.out) == {"over_budget": 5}
        found.append([row["id"] for row in rows(job.out / "train.jsonl")])
    assert found[0] == found[1] == found[2]


def test_a_judge_tags_the_rows_that_passed_the_rest_and_a_reward_model_scores_them(
    scripted_server: Scripted, tiny_model: Path, reward_model: Path, tmp_path: Path
) -> None:
    marks = ("", "weapon", "mumble", "poor")
    corpus = texts_corpus(tmp_path / "corpus", *(mail(n, mark) for n, mark in enumerate(marks)), mail(5, "CUT"))
    tags = {"llm": scripted_server.llm(), "min_quality": 2}
    filters = {**NO_REPEATS, "tags": tags, "embedding": {"threshold": 0.99999}, "reward": {"min_score": -1e6}}
    inputs = {"corpus": corpus, "embedder": tiny_model, "reward": reward_model}
    job = make_job(REWRITE, tmp_path, rewriting(scripted_server, filters=filters), {}, inputs)
    run_here(REWRITE, job)
    assert reasons(job.out) == {"low_quality": 1, "unfinished": 1, "unreadable_tags": 1, "unsafe": 1}
    (kept,) = rows(job.out / "train.jsonl")
    assert kept["tags"] == {"difficulty": 2, "quality": 4, "safe": True}
    assert isinstance(kept["reward"], float)


@pytest.fixture(scope="module")
def reward_model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_scores_each_conversation_as_if_it_were_alone(reward_model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Ida has 3 apples."}, {"role": "assistant", "content": "So she has."}]
    more = [*turns, {"role": "user", "content": "Really?"}, {"role": "assistant", "content": "She has 3 apples."}]
    one, other = ({"id": name, "conversation": each} for name, each in (("a", turns), ("b", more)))
    (alone,) = reward([one], str(reward_model), tmp_path)
    together = reward([other, one], str(reward_model), tmp_path)
    assert together[1] == alone != together[0]


def test_pairs_are_ranked_by_a_judge_or_a_reward_model(
    scripted_server: Scripted, tiny_model: Path, reward_model: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", [problem(n) for n in range(3)])
    policy = shutil.copytree(tiny_model, tmp_path / "policy")  # every sixteenth token ends its answer
    ends = json.dumps({"eos_token_id": list(range(480, 512))})
    (policy / "generation_config.json").write_text(ends)
    llm = {"type": "model", "generation_kwargs": {"max_new_tokens": 90}}
    judge = {"rank": {"type": "judge", "llm": scripted_server.llm()}, "llm": llm, "num_generations": 3}
    inputs = {"corpus": corpus, "model": policy, "reward": reward_model}
    job = make_job(PREFERENCE_PAIRS, tmp_path / "judge", judge | {"budget": {"calls": 8}}, {}, inputs)
    run_here(PREFERENCE_PAIRS, job)
    pairs = rows(job.out / "train.jsonl")
    assert [pair["scores"] for pair in pairs] == [[4, 2]] * 2, "the server rates text n with n + 1"
    assert reasons(job.out) == {"over_budget": 1}, "three samples and a rating are four calls"
    note = json.loads((job.out / "logs" / "provenance.jsonl").read_text().splitlines()[0])
    assert note == {
        "id": "train-000",
        "task": "preference_pairs",
        "model": "model:digest-of-model",
        "seed": 0,
        "parent": "train-000",
    }
    rewarded = make_job(PREFERENCE_PAIRS, tmp_path / "reward", judge | {"rank": {"type": "reward"}}, {}, inputs)
    run_here(PREFERENCE_PAIRS, rewarded)
    assert all(best > worst for best, worst in (pair["scores"] for pair in rows(rewarded.out / "train.jsonl")))


def test_a_rating_that_cannot_be_read_is_no_vote() -> None:
    prompt = {"id": "p", "messages": [], "level": 0}
    samples = [{"text": text, "finished": True} for text in ("a", "b", "b")]
    rank = JudgeRank.model_validate({"type": "judge", "llm": {"type": "openai"}, "min_chosen": 4})
    assert make_pair(prompt, samples, None, rank)["reason"] == "unreadable_rating"
    assert make_pair(prompt, samples, [3, 1, 2], rank)["reason"] == "low_rating"
    assert make_pair(prompt, samples, [2, 2, 2], rank)["reason"] == "same_score"
    assert make_pair(prompt, samples[1:], [5, 1], rank)["reason"] == "same_score"
    assert make_pair(prompt, samples, [1, 5, 2], rank)["chosen"][0]["content"] == "b"


def test_prompts_of_pairs_are_drawn_by_the_seed_not_the_first_ones(tmp_path: Path) -> None:
    lines = [{"id": f"r{n:02d}", "messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    for seed in (0, 0, 1):
        config = {"problems": 8, "seed": seed, "rank": {"type": "reward"}}
        asked, refused = prompts_of(make_job(PREFERENCE_PAIRS, tmp_path / "job", config, {}, {"prompts": tmp_path}))
        assert len(asked) == 8 and refused == []
        drawn.append([prompt["id"] for prompt in asked])
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) != [line["id"] for line in lines[:8]]


def test_a_prompt_too_close_to_a_test_set_gets_no_pair(tmp_path: Path) -> None:
    exam = write_corpus(tmp_path / "exam", [], [problem(3)])
    asked = [problem(number)["question"] for number in (3, 4)]
    lines = [{"id": str(n), "messages": [{"role": "user", "content": text}]} for n, text in enumerate(asked)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inputs = {"prompts": tmp_path, "exam": exam}
    kept, refused = prompts_of(make_job(PREFERENCE_PAIRS, tmp_path / "job", {"rank": {"type": "reward"}}, {}, inputs))
    assert [prompt["id"] for prompt in kept] == ["1"]
    assert [(row["id"], row["reason"]) for row in refused] == [("0", "contaminated: exam/problems")]


def test_an_answer_that_was_cut_is_never_the_chosen_one() -> None:
    prompt, rank = {"id": "p", "messages": [], "level": 0}, None
    cut, empty, whole = ({"text": text, "finished": text == "c"} for text in ("a", " ", "c"))
    pair = make_pair(prompt, [cut, empty, whole], [5, 1, 3], rank)
    assert pair["reason"] == "same_score", "the only whole answer is the worst that says anything"
    pair = make_pair(prompt, [cut, empty, whole], [2, 1, 3], rank)
    assert pair["chosen"][0]["content"] == "c" and pair["rejected"][0]["content"] == "a"
    assert make_pair(prompt, [cut, empty], [5, 1], rank)["reason"] == "unfinished"


def test_a_gguf_answers_with_its_own_tokenizer_and_template(tiny_model: Path, tmp_path: Path) -> None:
    write_gguf(tiny_model, tmp_path / "model-f32.gguf", "f32", {"name": "t"})
    arguments = {"type": "gguf", "generation_kwargs": {"max_new_tokens": 5, "temperature": 0.0}}
    common: dict[str, Any] = {"problems": None, "seed": 0, "device": "cpu", "batch_size": 4}
    llm = make_llm(arguments, model=tmp_path, **common)
    messages = [{"role": "user", "content": "Ida has 3 apples."}]
    prompts = [{"id": name, "messages": messages} for name in "ab"]
    first, second = generate(prompts, llm, 1, tmp_path)
    assert first["text"] == second["text"] and first["tokens"] == 5 and not first["finished"]
    torch = make_llm(arguments | {"type": "model"}, model=tiny_model, **common)
    assert generate(prompts, torch, 1, tmp_path)[0]["text"] == first["text"]


def test_llama_cpp_reads_a_prompt_as_transformers_does(tiny_model: Path, tmp_path: Path) -> None:
    from engine.llamacpp import LlamaCppEngine

    write_gguf(tiny_model, tmp_path / "model-f32.gguf", "f32", {"name": "t"})
    theirs = AutoTokenizer.from_pretrained(tiny_model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 apples?"}]
    with LlamaCppEngine(tmp_path / "model-f32.gguf", slots=1) as engine:
        own = GgufTokenizer(engine, None)
        prompt = own.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = own(prompt)["input_ids"]
        assert ids == theirs(prompt, add_special_tokens=False)["input_ids"]
        assert own.decode([*theirs("So it is")["input_ids"], 2]) == "So it is"


def test_vllm_gets_the_model_and_its_own_arguments(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import engine.vllm

    def stand_in(folder: Path, **options: Any) -> TorchEngine:
        assert options == {"max_model_len": 99}
        return TorchEngine(folder, device="cpu")

    monkeypatch.setattr(engine.vllm, "VllmEngine", stand_in)
    arguments = {"type": "vllm", "vllm": {"max_model_len": 99}, "generation_kwargs": {"max_new_tokens": 5}}
    llm = make_llm(arguments, problems=None, model=tiny_model, seed=0, device="cpu", batch_size=4)
    (answer,) = generate([{"id": "a", "messages": [{"role": "user", "content": "Ida?"}]}], llm, 1, tmp_path)
    assert answer["tokens"] == 5


def test_ray_gets_what_its_pipeline_knows(tmp_path: Path) -> None:
    given = {"ray_head_node_url": "ray://head:10001", "ray_init_kwargs": {"num_cpus": 4}, "requirements": ["acorn-lm"]}
    assert set(given) == ray_arguments(), "every argument of this release's RayPipeline is acorn's or the recipe's"
    inspect.signature(RayPipeline.__init__).bind(None, "n", None, tmp_path, True, **given)
    pipeline = _make_pipeline(tmp_path, given)
    assert isinstance(pipeline, RayPipeline) and pipeline._ray_init_kwargs == {"num_cpus": 4}
    problems = check(ChatDataConfig(), ChatExecution.model_validate({"ray": {"ray_head_url": "x"}}))
    assert [each.field for each in problems] == ["ray.ray_head_url"] and "ray_head_node_url" in problems[0].message


def test_what_is_wrong_with_a_making_step_is_named_when_the_recipe_is_loaded() -> None:
    def found(**config: Any) -> dict[str, str]:
        made = RewriteConfig.model_validate(config)
        return {each.field: each.message for each in check_making(made, MakingExecution())}

    assert found() == {}
    assert "'en'" not in found(filters={"language": {"keep": ["english"]}})["filters.language.keep.english"]
    assert "'threshold'" in found(filters={"minhash": {"treshold": 1}})["filters.minhash.treshold"]
    assert "required" in found(filters={"tags": {"llm": {"type": "openai"}}})["filters.tags.llm.model"]
    assert check_making(MagpieConfig.model_validate({"rows": 1}), MakingExecution()) == []
    roles = check_making_roles(RewriteConfig(), ["corpus"])
    assert [each.field for each in roles] == ["config.llm.type"] and "`model` input" in roles[0].message
    assert check_making_roles(RewriteConfig(), ["corpus", "model"]) == []
    asks = RewriteConfig.model_validate({"filters": {"reward": {"min_score": 0}, "embedding": {}}})
    assert len(check_making_roles(asks, ["corpus", "model"])) == 2
    pairs = PREFERENCE_PAIRS.identity.model_validate({})
    assert [each.field for each in check_pairs(pairs, ["model"])] == ["inputs"]
    assert [each.field for each in check_pairs(pairs, ["model", "prompts"])] == ["inputs.prompts"]
    with pytest.raises(ValueError, match=r"llm\.tokenizer is missing"):
        MagpieConfig.model_validate({"rows": 1, "llm": {"type": "openai", "model": "m"}})


def test_older_recipes_keep_their_keys() -> None:
    for stage in (CHAT_DATA, PREFERENCE_PAIRS):
        assert not {"budget", "rank", "filters"} & stage.identity().model_dump(mode="json").keys()
