"""A model that knows the answers to some questions, so that a score can be known beforehand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acorn.problems import WordProblem, as_document
from eval.config import EvaluateConfig
from eval.suite import read_problems

PER_LEVEL = 2
KNOWN_LEVELS = (1, 2)


@pytest.fixture(scope="session")
def asked(tiny_corpus: Path) -> list[WordProblem]:
    """The questions that a config with `problems_per_level: 2` draws."""
    return read_problems(tiny_corpus, EvaluateConfig(problems_per_level=PER_LEVEL))


@pytest.fixture(scope="session")
def knower(tiny_model: Path, asked: list[WordProblem], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` trained until it knows the asked problems of levels 1 and 2 by heart, as documents and as chats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("knower")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = []
    for problem in asked:
        if problem["level"] in KNOWN_LEVELS:
            question, solution = problem["question"], problem["solution"]
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
            texts.append("<|endoftext|>" + as_document(question, solution) + "<|endoftext|>")
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    batch = tokenizer(texts, padding=True, return_tensors="pt", padding_side="right")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
        for _ in range(300):
            loss = model(**batch, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.01:
                break
    assert loss.item() < 0.05, f"the model did not learn its answers by heart: loss {loss.item():.3f}"
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    model.save_pretrained(folder)
    return folder
