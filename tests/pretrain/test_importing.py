"""Original nanotron configs as recipes: what is carried over, and that nothing is dropped in silence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from acorn.recipe import Recipe, load_recipe
from pretrain import compat
from pretrain.check import check_pretrain
from pretrain.config import FILLED_IN, PretrainConfig, PretrainExecution
from pretrain.estimate import estimate
from pretrain.importing import CannotImport, Fate, Imported, import_config
from pretrain.importing.sections import CHOICES, MODEL, OPTIMIZER, SCHEDULER
from tests.pretrain.originals import GONE, OF_360M, OF_1700M, smollm2_135m, write_original

UNWEIGHTED = {"data_stages.0.data.dataset.dataset_weights": GONE}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def imported(folder: Path, changes: dict[str, Any] | None = None) -> Imported:
    return import_config(write_original(folder, changes))


def fates(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Fate]:
    return {fate.path: fate for fate in imported(folder, changes).fates}


def loaded(folder: Path, changes: dict[str, Any] | None = None) -> Recipe:
    """The recipe that acorn's own loader makes of the imported file."""
    file = folder / "recipe.yaml"
    file.write_text(imported(folder, changes).text())
    return load_recipe(file)


def base(recipe: Recipe) -> tuple[PretrainConfig, PretrainExecution]:
    step = recipe.steps["base"]
    assert isinstance(step.identity, PretrainConfig) and isinstance(step.execution, PretrainExecution)
    return step.identity, step.execution


def leaves(node: Any, at: str = "") -> dict[str, Any]:
    """Every value of a nanotron config by dotted path, but null and empty ones."""
    if isinstance(node, dict) or (isinstance(node, list) and node and isinstance(node[0], dict)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {path: v for key, value in items for path, v in leaves(value, f"{at}.{key}".lstrip(".")).items()}
    return {} if node is None or node == [] else {at: node}


def test_a_published_config_becomes_a_recipe_that_loads_and_that_nanotron_accepts(tmp_path: Path) -> None:
    recipe = loaded(tmp_path)
    config, execution = base(recipe)
    assert recipe.name == "smollm2-135M" and list(recipe.steps) == ["corpus", "tokenizer", "tokens", "base"]
    assert (config.steps, config.sequence_length, config.global_batch_size) == (2_000_000, 2048, 64 * 8)
    assert (config.dtype, config.seed) == ("bfloat16", 8) and config.init_std == pytest.approx(1 / 24)
    assert config.learning_rate_scheduler == smollm2_135m()["optimizer"]["learning_rate_scheduler"]
    assert config.optimizer["adam_beta2"] == 0.95 and config.optimizer["weight_decay"] == 0.01
    assert (execution.processes, execution.nodes, execution.micro_batch_size) == (8, 8, 8)
    assert (execution.zero_stage, execution.checkpoint_interval, execution.log_interval) == (0, 2000, 1)
    assert (execution.recompute, execution.validation_interval) == (False, 1000)
    assert execution.parallelism == {"tp": 1, "pp": 1, "pp_engine": "1f1b", "tp_mode": "REDUCE_SCATTER"}
    assert estimate(config, 49152)["parameters"] == 134_515_008  # of the published weights
    assert check_pretrain(config, execution) == []


@pytest.mark.parametrize("changes", [{}, OF_360M, OF_1700M], ids=["135m", "360m", "1.7b"])
def test_every_field_of_the_file_has_a_fate(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = fates(tmp_path, changes)
    original = yaml.safe_load(write_original(tmp_path, changes).read_text())
    assert {path: fate.value for path, fate in found.items()} == leaves(original)
    assert all(fate.why for fate in found.values() if fate.became != "carried over")


@pytest.mark.parametrize(
    ("path", "value", "became", "words"),
    [
        ("model.model_config.rope_scaling", "yarn", "left out", "ignores it"),
        ("model.model_config.hidden_act", "gelu", "left out", "has silu"),
        ("model.model_config.attention_bias", True, "left out", "LlamaConfig has no such field"),
        ("model.model_config.z_loss_enabled", True, "left out", "LlamaConfig has no such field"),
        ("model.model_config._use_doc_masking", True, "left out", "see each other"),
        ("model.init_method.use_mup", True, "left out", "muP"),
        ("model.dtype", "float16", "replaced", "by bfloat16"),
        ("optimizer.learning_rate_scheduler.lr_decay_style", "exponential", "replaced", "by linear"),
        ("optimizer.optimizer_factory.name", "sgd", "replaced", "by AdamW"),
        ("optimizer.weight_decay_exclude_named_params", [".*embedding.*"], "left out", "OptimizerArgs has no"),
        ("checkpoints.resume_checkpoint_path", "s3://some/where", "left out", "begin at random"),
    ],
)
def test_what_trains_something_else_is_marked_so_and_kept_in_the_recipe(
    tmp_path: Path, path: str, value: Any, became: str, words: str
) -> None:
    changed = imported(tmp_path, {path: value})
    fate = next(fate for fate in changed.fates if fate.path == path)
    assert (fate.became, fate.value, fate.changes_training) == (became, value, True)
    assert words in fate.why
    assert path in changed.text() and path not in imported(tmp_path).text()
    assert check_pretrain(*base(loaded(tmp_path, {path: value}))) == []


@pytest.mark.parametrize(
    ("path", "value", "became", "words"),
    [
        ("model.model_config.rope_interleaved", True, "left out", "rows in another order"),
        ("optimizer.optimizer_factory.adam_eps", 1e-6, "carried over", "as optimizer.adam_eps"),
        ("optimizer.zero_stage", 3, "replaced", "by execution.zero_stage 1"),
        ("parallelism.tp_linear_async_communication", True, "left out", "trains wrongly"),
        ("parallelism.tp_recompute_allreduce", True, "left out", "ParallelismArgs has no such field"),
        ("parallelism.recompute_layer", True, "carried over", "as execution.recompute"),
        ("tokens.val_check_interval", 500, "carried over", "as execution.validation_interval"),
        ("tokens.val_check_interval", -1, "left out", "at the end"),
        ("s3_upload.upload_s3_path", "s3://some/where", "left out", "acorn artifacts push"),
        ("lighteval.batch_size", 16, "left out", "stage: evaluate"),
        ("telemetry.endpoint", "host", "left out", "nanotron 0.4 has no such section"),
        ("data_stages.0.data.dataset.dataset_folder", "sets/one", "replaced", "placeholder under ./FILL-IN/"),
        ("data_stages.0.data.dataset.dataset_weights", [0.5], "left out", "one set of tokens"),
    ],
)
def test_what_nanotron_does_not_know_but_does_not_change_the_weights_is_told_apart(
    tmp_path: Path, path: str, value: Any, became: str, words: str
) -> None:
    fate = fates(tmp_path, {path: value})[path]
    assert (fate.became, fate.value, fate.changes_training) == (became, value, False)
    assert words in fate.why
    assert check_pretrain(*base(loaded(tmp_path, {path: value}))) == []


def test_processes_and_batch_are_those_of_the_original(tmp_path: Path) -> None:
    changes = {
        "parallelism.dp": 2,
        "parallelism.tp": 3,
        "tokens.micro_batch_size": 4,
        "tokens.batch_accumulation_per_replica": 5,
        "parallelism.tp_mode": "ALL_REDUCE",
    }
    config, execution = base(loaded(tmp_path, changes))
    assert config.global_batch_size == 2 * 4 * 5
    assert (execution.processes, execution.nodes, execution.rendezvous) == (6, 1, None)
    assert execution.parallelism["tp"] == 3
    assert check_pretrain(config, execution) == []


def test_what_nanotron_0_4_lacks_and_acorn_adds_is_carried_over(tmp_path: Path) -> None:
    style = "optimizer.learning_rate_scheduler.lr_decay_style"
    config, execution = base(loaded(tmp_path, {"model.model_config.rope_theta": 130000, style: "1-sqrt"}))
    assert config.model["rope_theta"] == 130_000.0
    assert config.learning_rate_scheduler["lr_decay_style"] == "1-sqrt"
    assert check_pretrain(config, execution) == []


def test_recomputation_and_validation_go_into_execution(tmp_path: Path) -> None:
    _, execution = base(loaded(tmp_path, {"parallelism.recompute_layer": True, "tokens.val_check_interval": 0}))
    assert (execution.recompute, execution.validation_interval) == (True, None)


def test_folders_of_tokens_become_placeholders_that_cannot_be_overlooked(tmp_path: Path) -> None:
    folders = ["datasets/smollm2-corpus", "s3://b/web/", "/data/math"]
    recipe = imported(tmp_path, {**UNWEIGHTED, "data_stages.0.data.dataset.dataset_folder": folders})
    paths = [source["path"] for source in recipe.recipe["steps"]["corpus"]["config"]["text"]]
    assert paths == ["./FILL-IN/datasets/smollm2-corpus", "./FILL-IN/b/web", "./FILL-IN/data/math"]
    assert recipe.to_fill_in()[0] == "corpus.license: FILL-IN"
    assert all(f"corpus.text.{index}.path: {path}" in recipe.to_fill_in() for index, path in enumerate(paths))
    assert not any(fate.changes_training for fate in recipe.fates)  # without weights, nanotron reads all of them whole


def test_data_stages_are_carried_over_with_their_weights(tmp_path: Path) -> None:
    decay = {"data": {"dataset": {"dataset_folder": {"s3://b/math/": 0.6, "/data/web": 0.4}}}, "start_training_step": 9}
    never = {"data": {"dataset": {"dataset_folder": ["x", "y"]}}, "start_training_step": 10**9}
    first = smollm2_135m()["data_stages"][0]
    first["data"]["dataset"] = {"dataset_folder": ["/data/web", "/data/code", "no"], "dataset_weights": [0.9, 0.1, 0]}
    recipe = loaded(tmp_path, {"data_stages": [decay, first, never]})
    config, execution = base(recipe)
    assert [stage.model_dump() for stage in config.data_stages] == [
        {"name": "stable phase", "start_training_step": 1, "data": {"tokens": 0.9, "data-code": 0.1}},
        {"name": "stage 9", "start_training_step": 9, "data": {"b-math": 0.6, "tokens": 0.4}},
    ]
    assert recipe.steps["base"].inputs == {
        "tokens": "tokens",
        "data-code": "data-code-tokens",
        "b-math": "b-math-tokens",
        "tokenizer": "tokenizer",
    }
    corpora = {name: step.identity for name, step in recipe.steps.items() if step.stage.name == "text"}
    paths = {name: [source.path for source in corpus.text] for name, corpus in corpora.items()}
    assert paths == {
        "corpus": ["./FILL-IN/data/web"],
        "data-code-corpus": ["./FILL-IN/data/code"],
        "b-math-corpus": ["./FILL-IN/b/math"],
    }
    told = {fate.path: fate for fate in imported(tmp_path, {"data_stages": [decay, first, never]}).fates}
    assert not any(fate.changes_training for fate in told.values())
    assert told["data_stages.0.start_training_step"].became == "carried over"
    assert "after the last step" in told["data_stages.2.start_training_step"].why
    assert check_pretrain(config, execution) == []


def test_a_source_that_a_stage_lists_twice_has_the_sum_of_its_weights(tmp_path: Path) -> None:
    twice = {"dataset_folder": ["/data/web", "/data/code", "/data/web"], "dataset_weights": [0.1, 0.7, 0.2]}
    recipe = loaded(tmp_path, {"data_stages.0.data.dataset": twice})
    assert [stage.data for stage in base(recipe)[0].data_stages] == [{"tokens": 0.3, "data-code": 0.7}]


def test_data_sets_of_the_hub_are_carried_over(tmp_path: Path) -> None:
    dataset = {
        "hf_dataset_or_datasets": "roneneldan/TinyStories",
        "hf_dataset_config_name": None,
        "hf_dataset_splits": "train",
        "text_column_name": "story",
    }
    changes = {"data_stages": GONE, "data.dataset": dataset}  # as nanotron 0.4 itself has it
    source = imported(tmp_path, changes).recipe["steps"]["corpus"]["config"]["text"][0]
    assert source["path"] == "roneneldan/TinyStories"
    assert (source["text_field"], source["split"]) == ("story", "train")
    assert loaded(tmp_path, changes).name == "smollm2-135M"


def test_a_config_without_tokenizer_trains_one_of_the_same_size(tmp_path: Path) -> None:
    changes = {"tokenizer": GONE}
    assert imported(tmp_path, changes).recipe["steps"]["tokenizer"]["config"] == {"vocab_size": 49152}
    assert fates(tmp_path, changes)["model.model_config.vocab_size"].became == "carried over"


def test_what_the_loader_would_refuse_is_put_right_and_told(tmp_path: Path) -> None:
    changes = {"model.dtype": "float32", "model.model_config.max_position_embeddings": 1024}
    found = fates(tmp_path, changes)
    assert found["optimizer.accumulate_grad_in_fp32"].became == "replaced"
    assert found["model.model_config.max_position_embeddings"].became == "replaced"
    config, execution = base(loaded(tmp_path, changes))
    assert config.model["max_position_embeddings"] == 2048
    assert check_pretrain(config, execution) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model.model_config.hidden_size": "wide"},
            r"yaml:\d+: model.model_config.hidden_size: 'wide' is not a whole",
        ),
        ({"model.model_config.hidden_size": GONE}, r"hidden_size: is missing"),
        ({"tokens.train_steps": 0}, r"train_steps: 0 is not at least 1"),
        ({"tokens.train_steps": True}, r"train_steps: True is not a whole number"),
        ({"tokens.val_check_interval": "often"}, r"val_check_interval: 'often' is not a whole number"),
        ({"optimizer.learning_rate_scheduler.learning_rate": GONE}, r"learning_rate: is missing"),
        ({"model.model_config.is_mamba_config": True}, r"is_mamba_config: acorn pre-trains Llama models only"),
        ({"model.model_config.moe_config": {"num_experts": 8}}, r"moe_config: acorn trains dense models only"),
        ({"model.model_config": GONE}, r"model.model_config: the shape of the model is missing"),
        ({"general": ["run"]}, r"yaml:\d+: general: expected a mapping, not \['run'\]"),
        ({"data_stages": ["all"]}, r"data_stages.0: expected a mapping, not 'all'"),
        ({"data_stages": "all"}, r"data_stages: 'all' is not a list"),
        ({"data_stages.0.start_training_step": 500}, r"start_training_step: 500 leaves the steps before it"),
        ({"data_stages": [{}, {}]}, r"data_stages.1.start_training_step: 1 is another stage's"),
        (
            {"data_stages.0.data.dataset.dataset_folder": ["a", "b"]},
            r"dataset_weights: \[1.0\] is no list of 2 weights",
        ),
        (
            {"data_stages.0.data.dataset": {"dataset_folder": ["a", "b"], "dataset_weights": [0, 0.0]}},
            r"yaml:\d+: data_stages.0.data.dataset.dataset_weights: all weights are 0",
        ),
        ({"data_stages.0.data.dataset.dataset_weights": [0]}, r"dataset.dataset_weights: all weights are 0"),
        ({"data_stages.0.data.dataset": {"dataset_folder": {"a": 0, "b": 0}}}, r"data.dataset: all weights are 0"),
        ({"tokens": GONE}, r"no nanotron config: it has no section tokens .*--config-file"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_place_value_and_remedy(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotImport, match=words):
        imported(tmp_path, changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", r"file.yaml:1: not YAML: .*--config-file"),
        ("- a", r"expected a mapping at the top; .*--config-file"),
        ("a: !!python/object/apply:os.getcwd []", r"not plain YAML: .*python/object/apply:os.getcwd"),
        ("model: 1\nmodel: 2", r"file.yaml:2: key 'model' is given twice; correct that"),
        ("steps: {base: {stage: pretrain}}", r"an acorn recipe already: run `acorn pretrain"),
        ("hello: 1", r"no section model, tokens, optimizer, parallelism \(at its top: hello\)"),
    ],
)
def test_a_file_that_is_no_nanotron_config_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(CannotImport, match=words):
        import_config(tmp_path / "file.yaml")


def test_the_names_known_here_are_those_of_the_pinned_nanotron() -> None:
    """Fails when another nanotron is pinned: what it knows need not be left out any more."""
    compat.install("cpu", flash=False)
    from nanotron.config import LlamaConfig, LRSchedulerArgs, OptimizerArgs, ParallelismArgs

    def names(owner: type, section: str) -> set[str]:
        return {field.name for field in fields(owner)} - FILLED_IN[section].keys()

    assert names(LlamaConfig, "model") == {*MODEL, "hidden_act", "rope_scaling"}
    assert names(LRSchedulerArgs, "learning_rate_scheduler") == SCHEDULER.keys()
    assert names(OptimizerArgs, "optimizer") == OPTIMIZER.keys()
    told = {"tp_linear_async_communication", "expert_parallel_size"}
    assert names(ParallelismArgs, "parallelism") == {"tp", "pp", *CHOICES, *told}


@pytest.mark.parametrize(
    ("name", "changes", "parameters", "trillions"),
    [
        ("smollm2-135m", {}, 134_515_008, 2),
        ("smollm2-360m", OF_360M, 361_821_120, 4),
        ("smollm2-1.7b", OF_1700M, 1_711_376_384, 11),
    ],
)
def test_the_shipped_recipes_are_the_published_runs(
    tmp_path: Path, name: str, changes: dict[str, Any], parameters: int, trillions: int
) -> None:
    shipped, execution = base(load_recipe(CONFIGS / f"{name}.yaml"))
    original, spread = base(loaded(tmp_path, changes))
    assert {**shipped.model, "hidden_act": "silu"} == original.model
    assert shipped.model_dump(exclude={"model"}) == original.model_dump(exclude={"model"})
    assert execution.micro_batch_size == spread.micro_batch_size
    schedule = shipped.learning_rate_scheduler
    assert schedule["lr_decay_starting_step"] + schedule["lr_decay_steps"] == shipped.train_steps
    cost = estimate(shipped, 49152)
    assert cost["parameters"] == parameters and cost["tokens"] == pytest.approx(trillions * 1e12, rel=0.05)


def test_the_recipes_with_data_stages_load_and_nanotron_accepts_them() -> None:
    smollm3 = load_recipe(CONFIGS / "smollm3-3b.yaml")
    config, _ = base(smollm3)
    cost = estimate(config, 128_256)
    assert cost["parameters"] == 3_075_098_624  # of the published weights
    assert cost["tokens"] == pytest.approx(11.1e12, rel=0.01)
    assert [stage.start_training_step for stage in config.data_stages] == [1, 3_450_001, 4_198_001]
    found = {}
    for recipe in (smollm3, load_recipe(CONFIGS / "stages.yaml")):
        for name, step in recipe.steps.items():
            if isinstance(step.identity, PretrainConfig) and isinstance(step.execution, PretrainExecution):
                assert check_pretrain(step.identity, step.execution) == []
                found[name] = (
                    step.inputs.get("model"),
                    step.identity.sequence_length,
                    step.identity.model.get("rope_theta"),
                )
    longer = [smollm3.steps[name].execution for name in ("context-32k", "context-64k")]
    assert all(isinstance(one, PretrainExecution) and one.recompute for one in longer)
    assert found["context-32k"] == ("base", 32_768, 2e6) and found["context-64k"] == ("context-32k", 65_536, 5e6)
    assert found["long"] == ("annealed", 512, 5e4)
