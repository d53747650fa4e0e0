"""Each patch of nanotron is still needed. Where one is not, this fails and the patch can go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.compat import flash, rewrites

NOT_SHOWN_BY_A_SINGLE_PROCESS = (
    "only the last bucket's all-reduce is waited for",
    "the device of the norm on a process that owns no gradient",  # shown by test_parallelism.py: tp2 x pp2
)


def test_nanotron_fails_without_any_one_of_its_patches(toy_tokens: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    arguments = map(str, (tmp_path, toy_tokens, tiny_tokenizer))
    done = subprocess.run(
        [sys.executable, "-m", "tests.pretrain.without", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=550,
    )
    outcomes = {int(number): outcome for number, outcome in json.loads(done.stdout.splitlines()[-1]).items()}
    assert outcomes.pop(-1) == "fine"
    for number, outcome in outcomes.items():
        rule = rewrites.REWRITES[number]
        if not rule.why.startswith(NOT_SHOWN_BY_A_SINGLE_PROCESS):
            assert outcome != "fine", f"nanotron runs without {rule.module}: {rule.old!r} -> {rule.new!r}"


def test_a_rule_that_does_not_match_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")
    rule = rewrites.Rewrite("module", "y = 2", "y = 3", 1, "always", "")
    with pytest.raises(ImportError, match=r"module: expected 'y = 2' 1 times, found it 0 times"):
        rewrites._Loader("module", str(tmp_path / "module.py"), [rule]).get_code("module")


def test_the_attention_stand_in_is_causal_attention_with_grouped_heads() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2 * 5, 4, 8), torch.randn(2 * 5, 2, 8), torch.randn(2 * 5, 2, 8)
    ends = torch.tensor([0, 5, 10])
    out = flash.flash_attn_varlen_func(q, k, v, ends, ends, 5, 5, causal=True)
    for sequence in range(2):
        rows = slice(5 * sequence, 5 * sequence + 5)
        for head in range(4):
            scores = q[rows, head] @ k[rows, head // 2].T / 8**0.5
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
            assert torch.allclose(out[rows, head], scores.softmax(-1) @ v[rows, head // 2], atol=1e-5)
    with pytest.raises(ValueError, match="one length"):
        flash.flash_attn_varlen_func(q[:-1], k, v, ends, ends, 5, 5, causal=True)
