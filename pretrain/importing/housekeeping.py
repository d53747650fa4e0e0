"""Fields with no place in a recipe: why each is left out, and whether that changes what is trained."""

from __future__ import annotations

from pretrain.importing.original import Original

KEPT_BY_ACORN = "acorn keeps checkpoints in the step's scratch folder, and resumes from the newest"
FROM_SCRATCH = (
    "the weights begin at random, as acorn reads no nanotron checkpoints: to go on from a model, bring it with a "
    "hub_model step and make that the base step's input `model`"
)
UNSUPERVISED = "nanotron 0.4 does not act on it; acorn's validation passes read validation.bin whole"

HARMLESS = {
    "general.project": "the tracker's project is WANDB_PROJECT",
    "general.benchmark_csv_path": "the speed is logged as train/tokens_per_second",
    "general.consumed_train_samples": "state of a run, no setting",
    "general.step": "state of a run, no setting",
    "general.ignore_sanity_checks": "acorn sets it",
    "checkpoints.checkpoints_path": KEPT_BY_ACORN,
    "checkpoints.checkpoints_path_is_shared_file_system": KEPT_BY_ACORN,
    "checkpoints.save_initial_state": KEPT_BY_ACORN,
    "checkpoints.save_final_state": "nanotron 0.4 has no such field; the last step is always saved",
    "checkpoints.load_optimizer": "nanotron 0.4 has no such field; a resumed run always loads it",
    "checkpoints.load_lr_scheduler": "nanotron 0.4 has no such field; a resumed run always loads it",
    "checkpoints.checkpoint_interval": "0 is no interval: acorn's default stands",
    "logging.iteration_step_info_interval": "0 is no interval: acorn's default stands",
    "logging.log_level": "acorn logs on its own",
    "logging.log_level_replica": "acorn logs on its own",
    "model.ddp_bucket_cap_mb": "nanotron's default stands; it does not change the result",
    "model.make_vocab_size_divisible_by": "the vocabulary is never padded",
    "model.model_config.rope_interleaved": (
        "nanotron 0.4 has no such field and always rotates interleaved pairs; from random weights the two layouts are "
        "one model with query and key rows in another order, and the conversion puts them in Hugging Face's"
    ),
    "model.model_config._attn_implementation": "nanotron 0.4 has no such field; chosen by device and dtype",
    "model.model_config._fused_rms_norm": "nanotron 0.4 has no such field; chosen by device and dtype",
    "model.model_config._fused_rotary_emb": "nanotron 0.4 has no such field; chosen by device and dtype",
    "model.model_config._use_qkv_packed": "nanotron 0.4 has no such field; chosen by device and dtype",
    "model.model_config.ring_attn_heads_k_stride": "nanotron 0.4 has no ring attention",
    "parallelism.tp_recompute_allgather": "nanotron 0.4 has no such field; it costs memory, not the result",
    "parallelism.tp_linear_async_communication": "it fails or trains wrongly in nanotron 0.4; slower without",
    "parallelism.expert_parallel_size": "the model has no experts",
    "parallelism.moe_layer_recompute": "nanotron 0.4 has no such field; the model has no experts",
    "parallelism.context_parallel_size": "nanotron 0.4 does not split sequences; processes are dp x tp x pp",
    "tokenizer.tokenizer_max_length": "documents are cut into sequences, whatever their length",
    "tokens.val_check_interval": "no interval: acorn makes one validation pass, at the end",
    "tokens.limit_val_batches": UNSUPERVISED,
    "tokens.limit_test_batches": UNSUPERVISED,
    "profiler": "acorn does not profile; the speed is logged as train/tokens_per_second",
    "lighteval": "evaluation is a step of its own: add one with `stage: evaluate`",
    "s3_upload": "nanotron 0.4 has no such section; copy finished artifacts with `acorn artifacts push`",
    "metrics_logging": "nanotron 0.4 has no such section; metrics are listed in docs/pretrain.md",
    "experiment_logger": "nanotron 0.4 has no such section; the tracker's project is WANDB_PROJECT",
}
CHANGING = {
    "checkpoints.resume_checkpoint_path": FROM_SCRATCH,
    "model.init_method.path": FROM_SCRATCH,
    "model.model_config._use_doc_masking": "nanotron 0.4 has no such field: documents in one sequence see each other",
    "doremi": "nanotron 0.4 reweights no domains on the way: the shares of the data stay as they are",
}
UNKNOWN_TO = {
    "model.model_config": "LlamaConfig",
    "optimizer.learning_rate_scheduler": "LRSchedulerArgs",
    "optimizer": "OptimizerArgs",
    "parallelism": "ParallelismArgs",
    "model": "ModelArgs",
    "tokens": "TokensArgs",
    "general": "GeneralArgs",
    "checkpoints": "CheckpointsArgs",
    "logging": "LoggingArgs",
    "tokenizer": "TokenizerArgs",
}
"""nanotron 0.4's class for each section, the inner ones first."""
DECIDES = ("model", "optimizer")
"""Sections in which a field that is switched on is taken to change what is trained."""


def tell_the_rest(original: Original) -> None:
    """Give a fate to every field that has none yet."""
    for path, why in HARMLESS.items():
        original.tell(path, "left out", why)
    for path, why in CHANGING.items():
        original.tell(path, "left out", why, changes=bool(original.value(path)))
    if not original.value("model.model_config.z_loss_enabled"):
        original.tell("model.model_config.z_loss_coefficient", "left out", "the z-loss is not enabled")
    for path, value in original.untold().items():
        section = next((name for name in UNKNOWN_TO if path.startswith(f"{name}.")), None)
        what = f"'s {UNKNOWN_TO[section]} has no such field" if section else " has no such section"
        decides = path.split(".")[0] in DECIDES and bool(value)
        original.tell(path, "left out", f"nanotron 0.4{what}", changes=decides)
