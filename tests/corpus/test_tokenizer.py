import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from corpus.stage import TOKENIZER
from tests.jobs import make_job, run_here

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "assistant? Mia has 74 coins."},
    {"role": "assistant", "content": "Mia buys 5: 74+5=79\n\n#### 79"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": " 79 "},
]


def make(folder: Path, config: dict[str, Any], corpus: Path | None) -> Path:
    job = make_job(TOKENIZER, folder, config, inputs={"corpus": corpus} if corpus else {})
    run_here(TOKENIZER, job)
    return job.out


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_encode_and_decode(tiny_tokenizer: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token_and_special_tokens_have_the_agreed_ids(tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = tokenizer.get_vocab()
    assert set(ByteLevel.alphabet()) <= set(vocabulary)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    assert [vocabulary[token] for token in special] == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 2, 3)
    assert tokenizer.unk_token is None
    assert tokenizer.decode([0, 1, 2, 3], skip_special_tokens=True) == ""


def test_digits_are_single_tokens_and_nothing_is_added_to_a_text(tokenizer: Any) -> None:
    ids = tokenizer("74+15=89 1234")["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == list("74+15=89 1234")


def test_the_files_have_the_structure_llama_cpp_knows_as_smollm(tiny_tokenizer: Path) -> None:
    data = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    kinds = [part["type"] for part in data["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Digits", "ByteLevel"]
    digits, byte_level = data["pre_tokenizer"]["pretokenizers"]
    assert digits["individual_digits"] is True
    assert byte_level["add_prefix_space"] is False and byte_level["use_regex"] is True
    assert data["normalizer"] is None and data["post_processor"] is None
    assert len(data["model"]["merges"]) == 512 - 260
    assert json.loads((tiny_tokenizer / "tokenizer_config.json").read_text())["add_bos_token"] is False


def test_the_generation_mask_covers_exactly_the_assistants_turns_and_their_end_tokens(tokenizer: Any) -> None:
    out = tokenizer.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True, return_dict=True)
    chosen = [token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(chosen) == "Mia buys 5: 74+5=79\n\n#### 79<|im_end|> 79 <|im_end|>"


def test_a_prompt_is_the_beginning_of_the_conversation_it_leads_to(tokenizer: Any) -> None:
    for turns in (2, 4):
        prompt = tokenizer.apply_chat_template(CONVERSATION[:turns], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(CONVERSATION[: turns + 1], tokenize=False)
        assert whole == prompt + CONVERSATION[turns]["content"] + "<|im_end|>\n"
    assert tokenizer.apply_chat_template(CONVERSATION[1:2], tokenize=False).startswith("<|im_start|>user\n")


def test_training_twice_gives_the_same_bytes_whatever_the_number_of_threads(
    tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tests.corpus.test_tokenizer import make"
        "; threads = lambda: len(os.listdir('/proc/self/task')); before = threads()"
        "; make(Path(sys.argv[2]), {'vocab_size': 512}, Path(sys.argv[1])); print(threads() - before)"
    )
    environment = os.environ | {"RAYON_NUM_THREADS": "9", "TOKENIZERS_PARALLELISM": "false"}  # as acorn starts it
    command = [sys.executable, "-c", code, str(tiny_corpus), str(tmp_path)]
    run = subprocess.run(command, env=environment, check=True, timeout=500, capture_output=True, text=True)
    assert int(run.stdout.split()[-1]) >= 9, "one core alone was used"
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in tiny_tokenizer.iterdir())
    for file in tiny_tokenizer.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_existing_tokenizer_is_taken_unchanged(tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = make(tmp_path, {"pretrained": str(tiny_tokenizer)}, None)
    for file in tiny_tokenizer.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_an_existing_tokenizer_without_generation_markers_needs_an_own_template(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    plain, template = tmp_path / "plain", tmp_path / "own.jinja"
    shutil.copytree(tiny_tokenizer, plain)
    own = (plain / "chat_template.jinja").read_text()
    markers = ("{%- generation -%}", "{%- endgeneration -%}")
    (plain / "chat_template.jinja").write_text(own.replace(markers[0], "").replace(markers[1], ""))
    with pytest.raises(ValueError, match=r"generation.*set `template`"):
        make(tmp_path / "refused", {"pretrained": str(plain)}, None)
    template.write_text(own + "{# own #}")
    out = make(tmp_path / "given", {"pretrained": str(plain), "template": str(template)}, None)
    assert "own" in AutoTokenizer.from_pretrained(out).chat_template
    template.write_text("{{ messages }}")
    with pytest.raises(ValueError, match=r"no \{% generation %}"):
        make(tmp_path / "bad", {"template": str(template), "pretrained": str(plain)}, None)


def test_a_vocabulary_that_cannot_be_reached_is_refused_with_the_size_that_can(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"set vocab_size to \d+ or less"):
        make(tmp_path, {"vocab_size": 30_000}, tiny_corpus)
    with pytest.raises(ValueError, match="no room"):
        make(tmp_path, {"vocab_size": 260}, tiny_corpus)
    with pytest.raises(ValueError, match="no corpus"):
        make(tmp_path, {"vocab_size": 512}, None)
