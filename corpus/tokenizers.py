"""Stage `tokenizer`: trains a byte-level BPE with Hugging Face `tokenizers`, or takes an existing one unchanged.

The structure is the one llama.cpp knows as `smollm` (digits one by one, then the GPT-2 regex over bytes), so that every
tokenizer made here can be exported to GGUF: another structure has no name there and would be refused. No normalizer and
no post-processor: nothing is added to a text, and every byte sequence survives encode and decode.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from acorn.stage import Job
from acorn.tokenizers import believe_tokenizer_file
from corpus.config import SMALLEST_VOCABULARY, SPECIAL_TOKENS, TokenizerIdentity
from corpus.reading import rows, texts
from corpus.threads import tokenizers_on_all_cores

TEMPLATE_FILE = "chat_template.jinja"
SHIPPED_TEMPLATE = Path(__file__).with_name(TEMPLATE_FILE)

_PRETRAINED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    TEMPLATE_FILE,
)


def run(job: Job) -> dict[str, float]:
    """Write a `tokenizer` artifact. Returns vocabulary size, merges and characters per token on held-out text."""
    with tokenizers_on_all_cores():
        return _run(job)


def _run(job: Job) -> dict[str, float]:
    config: TokenizerIdentity = job.config
    corpus = job.inputs.get("corpus")
    template = read_template(config.template)
    if config.pretrained is not None:
        take_pretrained(config.pretrained, config.revision, template, job.out)
    elif corpus is None:
        raise ValueError("tokenizer: no corpus to train on: give the step the input `corpus`, or set `pretrained`")
    else:
        save(train(corpus, config), template or SHIPPED_TEMPLATE.read_text(encoding="utf-8"), job.out)
    tokenizer = AutoTokenizer.from_pretrained(job.out)
    metrics = {"tokenizer/vocab_size": float(len(tokenizer))}
    if corpus is not None:
        metrics["tokenizer/characters_per_token"] = characters_per_token(tokenizer, corpus)
    return metrics


def read_template(path: str | None) -> str | None:
    """Text of an own chat template. Raises FileNotFoundError, or ValueError without generation markers."""
    if path is None:
        return None
    text = Path(path).expanduser().read_text(encoding="utf-8")
    if not has_generation_markers(text):
        raise ValueError(
            f"template {path}: no {{% generation %}} ... {{% endgeneration %}} around the assistant's content and its "
            "end token; without them training cannot tell the assistant's tokens from the prompt's"
        )
    return text


def has_generation_markers(template: str) -> bool:
    squeezed = template.replace("-", "").replace(" ", "")
    return "{%generation%}" in squeezed and "{%endgeneration%}" in squeezed


def untrained() -> Tokenizer:
    """The structure without any merge: 256 bytes, digits one by one. llama.cpp's name for it is `smollm`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(corpus: Path, config: TokenizerIdentity) -> Tokenizer:
    """Train on the corpus' documents, and on its problems as turns of a chat.

    Raises ValueError where the corpus is too small for `vocab_size` entries.
    """
    tokenizer = untrained()
    trainer = BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(corpus, config.documents), trainer)
    size = tokenizer.get_vocab_size()
    if size < config.vocab_size:
        raise ValueError(
            f"vocab_size: asked for {config.vocab_size}, but the corpus has pairs seen {config.min_frequency} times or "
            f"more for {size} entries only ({size - SMALLEST_VOCABULARY} learned): set vocab_size to {size} or less, "
            "lower min_frequency, or give more documents"
        )
    return tokenizer


def training_texts(corpus: Path, documents: int) -> Iterator[str]:
    """At most `documents` documents, evenly from the whole corpus, and as many problems as turns of a chat."""
    stats = json.loads((corpus / "stats.json").read_text(encoding="utf-8"))
    total = sum(stats["documents"]["train"].values())
    yield from islice(texts(corpus, "train"), 0, None, max(1, ceil(total / documents)))
    problems = corpus / "problems" / "train.jsonl"
    if problems.exists():  # the words of the chat format ("user", "assistant") are in no document
        for row in islice(rows(problems), documents):
            yield f"user\n{row['question']}"
            yield f"assistant\n{row['solution']}"


def save(tokenizer: Tokenizer, template: str, out: Path) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` loads; the same tokenizer gives the same bytes.

    `<|im_start|>` has no role among transformers' special tokens: `extra_special_tokens`, where it would go, is a list
    that transformers 4 cannot read, and `tokenizer.json` marks it as special anyhow.
    """
    end_of_text, _, end_of_turn, pad = SPECIAL_TOKENS
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end_of_text,
        eos_token=end_of_turn,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(out)
    config_file = out / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["add_bos_token"] = False  # save_pretrained drops it, and exporters would have to guess
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # "TokenizersBackend" is known to transformers 5 alone
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # transformers 5 adds a TemplateProcessing that does nothing and that llama.cpp's converter stumbles over.
    tokenizer.post_processor = None
    tokenizer.save(str(out / "tokenizer.json"))


def take_pretrained(path: str, revision: str | None, template: str | None, out: Path) -> None:
    """Copy an existing tokenizer's files unchanged, but for a class that transformers would not believe tokenizer.json
    of; the chat template may be given anew.

    Raises FileNotFoundError for a folder without `tokenizer.json`, ValueError where no template has generation markers.
    """
    local = Path(path).expanduser()
    folder = local if local.exists() else _download(path, revision)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"pretrained: {path} has no tokenizer.json; convert the tokenizer to a fast one first "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    for name in _PRETRAINED_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if template is not None:  # a template file wins over one inside tokenizer_config.json
        (out / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    made = AutoTokenizer.from_pretrained(out)
    believe_tokenizer_file(out, made.backend_tokenizer.to_str())
    found = made.chat_template
    if not isinstance(found, str) or not has_generation_markers(found):
        raise ValueError(
            f"pretrained: the chat template of {path} has no {{% generation %}} markers around the assistant's turn; "
            f"set `template` to one that has, such as {SHIPPED_TEMPLATE}"
        )


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_PRETRAINED_FILES)))


def characters_per_token(tokenizer: Any, corpus: Path, documents: int = 1_000) -> float:
    """Characters a token over the first held-out documents: how well the vocabulary fits."""
    sample = [text for text, _ in zip(texts(corpus, "validation"), range(documents), strict=False)]
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"]) if sample else 0
    return sum(map(len, sample)) / tokens if tokens else 0.0
