"""A process reward model to go with `tiny_model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from acorn.tokenizers import copy_tokenizer
from engine.prm_formats import PrmFormat


@pytest.fixture(scope="session")
def tiny_prm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `prm`: the tiny model's backbone with an untrained head."""
    import torch
    from transformers import AutoModelForTokenClassification

    folder = tmp_path_factory.mktemp("tiny_prm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_pretrained(tiny_model, num_labels=1)
    model.save_pretrained(folder)
    copy_tokenizer(tiny_model, folder)
    PrmFormat(layout="delimiter", head="scalar", end_of_turn="<|im_end|>").save(folder)
    return folder
