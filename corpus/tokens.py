"""Stage `tokens`: the corpus as token ids, tokenised once and shuffled by document.

Two passes, so that memory does not grow with the corpus: documents are tokenised in their order into a scratch file,
then copied in the shuffled order (24 bytes of memory a document, disk for the tokens twice). Text is text: a
`<|im_end|>` that stands in a document is encoded as characters, never as the special token.

One process keeps all cores busy in `tokenizers`, whose threads do nine tenths of the work; reading and packing are the
rest. With many cores that tenth holds the others up: `workers` processes then take a range of the documents each.

Not datatrove's `DocumentTokenizer` (it starts in 1.5 s, so not for that): it closes documents with an end token where
ours are opened by `bos`, reads special tokens out of the text, and changes to wide ids at another vocabulary size.
benchmarks/tokenise.py measures both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from acorn.launch import available_cores
from acorn.stage import Job
from corpus.config import TokensIdentity
from corpus.processes import in_processes
from corpus.reading import numbered_rows, texts
from corpus.sifting import document_counts
from corpus.threads import tokenizers_on_all_cores

_LARGE = 65_536
"""From so many entries on, ids take four bytes."""
_COPIED_AT_ONCE = 4_096
"""Documents gathered before a write in the second pass: 0.7 MB of the procedural world."""


class Written(NamedTuple):
    """One part in its first order."""

    lengths: NDArray[np.int64]
    """Tokens of each document, `bos` included."""
    bytes: int
    """UTF-8 bytes of the texts, which bits per byte are counted by."""


class Work(NamedTuple):
    """What a worker process needs to know."""

    corpus: Path
    tokenizer: Path
    start: int
    """Id of the token that opens documents."""
    dtype: np.dtype
    batch: int


def run(job: Job) -> dict[str, float]:
    """Write a `tokens` artifact: `train.bin`, `validation.bin`, `meta.json`. Returns the counts.

    Raises ValueError for a corpus without train documents or with fewer than `minimum_tokens`, and for a tokenizer
    without the token that opens documents, RuntimeError where a worker was killed.
    """
    with tokenizers_on_all_cores():
        return _run(job)


def _run(job: Job) -> dict[str, float]:
    config: TokensIdentity = job.config
    tokenizer = load_tokenizer(job.inputs["tokenizer"])
    start = opening_id(tokenizer, job.inputs["tokenizer"], config.document_token)
    size = vocabulary_size(tokenizer)
    dtype = np.dtype("<u4" if size >= _LARGE else "<u2")
    work = Work(job.inputs["corpus"], job.inputs["tokenizer"], start, dtype, job.execution.batch_documents)
    pieces = tokenise_in_pieces(work, tokenizer, job.scratch, job.execution.workers)
    train = Written(np.concatenate([piece.lengths for _, piece in pieces]), sum(piece.bytes for _, piece in pieces))
    refuse_too_little(train, config.minimum_tokens)
    shuffle(pieces, dtype, config.seed, job.out / "train.bin")
    for path, _ in pieces:
        path.unlink()
    held_out = texts(job.inputs["corpus"], "validation")
    validation = tokenise(held_out, tokenizer, start, dtype, job.out / "validation.bin", work.batch)
    meta = {
        "dtype": dtype.name,
        "vocab_size": size,
        "train_tokens": int(train.lengths.sum()),
        "validation_tokens": int(validation.lengths.sum()),
        "train_bytes": train.bytes,
        "validation_bytes": validation.bytes,
    }
    (job.out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return {
        "tokens/train": float(train.lengths.sum()),
        "tokens/validation": float(validation.lengths.sum()),
        "tokens/train_documents": float(len(train.lengths)),
        "tokens/bytes_per_token": train.bytes / float(train.lengths.sum()),
    }


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer without the import of transformers: plain text in, no token added, no truncation."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def opening_id(tokenizer: Tokenizer, folder: Path, token: str | None) -> int:
    """Id of the token that opens documents: `token`, else the tokenizer's `bos`. Raises ValueError without one."""
    if token is None:
        token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("bos_token")
        token = token["content"] if isinstance(token, dict) else token
    number = None if token is None else tokenizer.token_to_id(token)
    if number is None:
        what = "the tokenizer has no bos token" if token is None else f"{token!r} is not in the tokenizer's vocabulary"
        raise ValueError(f"document_token: {what}; set it to a token of the vocabulary, such as '<|endoftext|>'")
    return int(number)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Largest id + 1: rows an embedding needs, also where the ids have gaps."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def tokenise(
    documents: Iterator[str], tokenizer: Tokenizer, start: int, dtype: np.dtype, path: Path, batch: int
) -> Written:
    """Write the documents' ids one after the other, each opened by `start`; `batch` documents are held at a time."""
    lengths: list[NDArray[np.int64]] = []
    size = 0
    with path.open("wb") as file, tqdm(desc=f"tokenising to {path.name}", unit="doc", mininterval=1) as progress:
        while chunk := list(islice(documents, batch)):
            encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False)]
            flat: list[int] = []
            for ids in encoded:
                flat.append(start)
                flat += ids
            file.write(np.array(flat, dtype=dtype).tobytes())
            lengths.append(np.array([len(ids) + 1 for ids in encoded], dtype=np.int64))
            size += sum(len(text.encode()) for text in chunk)
            progress.update(len(chunk))
    return Written(np.concatenate(lengths) if lengths else np.zeros(0, np.int64), size)


def tokenise_in_pieces(work: Work, tokenizer: Tokenizer, folder: Path, workers: int) -> list[tuple[Path, Written]]:
    """Tokenise the train documents; gives the files in the order of their documents, and what is in each."""
    if workers == 1:
        path = folder / "ordered.bin"
        documents = texts(work.corpus, "train")
        return [(path, tokenise(documents, tokenizer, work.start, work.dtype, path, work.batch))]
    total = document_counts(work.corpus)["train"]
    bounds = [total * number // workers for number in range(workers + 1)]
    ranges = [(first, end) for first, end in pairwise(bounds) if first < end] or [(0, 0)]
    jobs = [(work, folder / f"ordered-{first}.bin", first, end) for first, end in ranges]
    # Forked, and nothing has used the tokenizer's threads yet.
    written = in_processes(lambda job: _tokenise_range(*job, threads=threads_each(workers)), jobs, workers)
    return [(path, piece) for (_, path, *_), piece in zip(jobs, written, strict=True)]


def threads_each(workers: int) -> int:
    """Threads of one of `workers` processes that share the cores."""
    return max(1, available_cores() // workers)


def _tokenise_range(work: Work, path: Path, first: int, end: int, threads: int) -> Written:
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # in a process of its own
    documents = (row["text"] for _, row in numbered_rows(work.corpus, "train", first, end))
    return tokenise(documents, load_tokenizer(work.tokenizer), work.start, work.dtype, path, work.batch)


def refuse_too_little(train: Written, minimum: int) -> None:
    """Raise ValueError for a corpus that training could not start from."""
    if not len(train.lengths):
        raise ValueError("the corpus has no train documents: give its step documents (`documents`, or a text source)")
    if (tokens := int(train.lengths.sum())) < minimum:
        raise ValueError(f"the corpus has {tokens} train tokens, minimum_tokens wants {minimum}: give more documents")


def shuffle(pieces: Sequence[tuple[Path, Written]], dtype: np.dtype, seed: int, path: Path) -> None:
    """Copy the documents of all pieces in an order that follows from `seed` alone."""
    tokens = [np.memmap(piece, dtype=dtype, mode="r") for piece, _ in pieces]
    lengths = np.concatenate([written.lengths for _, written in pieces])
    ends = np.concatenate([np.cumsum(written.lengths) for _, written in pieces])
    owner = np.repeat(np.arange(len(pieces), dtype=np.uint16), [len(written.lengths) for _, written in pieces])
    order = np.random.default_rng(seed).permutation(len(lengths))
    with path.open("wb") as file:
        for first in tqdm(range(0, len(order), _COPIED_AT_ONCE), desc="shuffling", mininterval=1):
            chosen = order[first : first + _COPIED_AT_ONCE]
            spans = zip(owner[chosen], ends[chosen] - lengths[chosen], ends[chosen], strict=True)
            file.write(np.concatenate([tokens[piece][begin:end] for piece, begin, end in spans]).tobytes())
