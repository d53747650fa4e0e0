import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from corpus.stage import TOKENS
from corpus.tokens import threads_each
from corpus.writing import CorpusWriter
from tests.jobs import make_job, run_here


def make(folder: Path, corpus: Path, tokenizer: Path, config: Any = None, execution: Any = None) -> Path:
    job = make_job(TOKENS, folder, config, execution, {"corpus": corpus, "tokenizer": tokenizer})
    run_here(TOKENS, job)
    return job.out


def documents(folder: Path, part: str, tokenizer: Path) -> list[str]:
    ids = np.fromfile(folder / f"{part}.bin", dtype=json.loads((folder / "meta.json").read_text())["dtype"])
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    starts = np.flatnonzero(ids == 0)
    assert starts[0] == 0
    return [decoder.decode(piece[1:].tolist(), skip_special_tokens=False) for piece in np.split(ids, starts[1:])]


def written(corpus: Path, part: str) -> list[str]:
    return [json.loads(line)["text"] for line in (corpus / part / "00000.jsonl").read_text().splitlines()]


def write_corpus(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    with CorpusWriter(folder) as writer:
        for text in texts:
            writer.document("train", text, "text")
    return folder


def test_the_files_decode_back_to_the_documents_shuffled_but_complete(
    tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    out = make(tmp_path, tiny_corpus, tiny_tokenizer)
    train = documents(out, "train", tiny_tokenizer)
    assert sorted(train) == sorted(written(tiny_corpus, "train"))
    assert train != written(tiny_corpus, "train")
    assert documents(out, "validation", tiny_tokenizer) == written(tiny_corpus, "validation")


def test_meta_counts_what_is_in_the_files(tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = make(tmp_path, tiny_corpus, tiny_tokenizer)
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["dtype"], meta["vocab_size"]) == ("uint16", 512)
    for part in ("train", "validation"):
        assert (out / f"{part}.bin").stat().st_size == 2 * meta[f"{part}_tokens"]
        assert meta[f"{part}_bytes"] == sum(len(text.encode()) for text in written(tiny_corpus, part))


def test_batch_size_and_workers_change_nothing_and_the_seed_only_the_order(
    tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    first = make(tmp_path / "a", tiny_corpus, tiny_tokenizer)
    second = make(tmp_path / "b", tiny_corpus, tiny_tokenizer, execution={"batch_documents": 7})
    workers = make(tmp_path / "d", tiny_corpus, tiny_tokenizer, execution={"workers": 3})
    other = make(tmp_path / "c", tiny_corpus, tiny_tokenizer, {"seed": 1})
    for name in ("train.bin", "validation.bin", "meta.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (workers / name).read_bytes()
    assert (first / "train.bin").read_bytes() != (other / "train.bin").read_bytes()
    assert (first / "meta.json").read_bytes() == (other / "meta.json").read_bytes()


def test_a_special_token_written_in_a_text_stays_text(tiny_tokenizer: Path, tmp_path: Path) -> None:
    text = "He wrote <|im_end|> and <|endoftext|> on the wall. ñ 漢 🌰 \x00"
    out = make(tmp_path, write_corpus(tmp_path / "corpus", [text]), tiny_tokenizer)
    assert documents(out, "train", tiny_tokenizer) == [text]
    assert (out / "validation.bin").read_bytes() == b""


def test_a_large_vocabulary_takes_four_bytes(tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    tokenizer.add_tokens([f"word{number}" for number in range(65_536 - 512)])
    tokenizer.save(str(large / "tokenizer.json"))
    (large / "tokenizer_config.json").write_text('{"bos_token": {"content": "<|endoftext|>"}}')
    out = make(tmp_path, write_corpus(tmp_path / "corpus", ["word65000 is new"]), large)
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["dtype"], meta["vocab_size"]) == ("uint32", 65_536)
    assert documents(out, "train", large) == ["word65000 is new"]


def test_a_corpus_or_tokenizer_that_cannot_be_used_is_refused(
    tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    for workers in (1, 2):
        with pytest.raises(ValueError, match="no train documents"):
            empty = write_corpus(tmp_path / f"empty-{workers}", [])
            make(tmp_path / f"a-{workers}", empty, tiny_tokenizer, execution={"workers": workers})
    with pytest.raises(ValueError, match="minimum_tokens"):
        make(tmp_path / "b", tiny_corpus, tiny_tokenizer, {"minimum_tokens": 10_000_000})
    with pytest.raises(ValueError, match="not in the tokenizer's vocabulary"):
        make(tmp_path / "c", tiny_corpus, tiny_tokenizer, {"document_token": "<s>"})


def test_all_cores_are_used_where_acorn_turned_the_librarys_threads_off_and_no_byte_changes(
    tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """In a process of its own: this one may have used the threads already."""
    code = (
        "import os, sys; from pathlib import Path; from tests.corpus.test_tokens import make"
        "; threads = lambda: len(os.listdir('/proc/self/task')); before = threads()"
        "; make(*map(Path, sys.argv[1:])); print(threads() - before, os.environ['TOKENIZERS_PARALLELISM'])"
    )
    environment = os.environ | {"RAYON_NUM_THREADS": "9", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", code, str(tmp_path / "a"), str(tiny_corpus), str(tiny_tokenizer)]
    run = subprocess.run(command, env=environment, check=True, timeout=500, capture_output=True, text=True)
    grown, after = run.stdout.split()[-2:]
    assert int(grown) >= 9 and after == "false"
    here = make(tmp_path / "b", tiny_corpus, tiny_tokenizer)
    assert (here / "train.bin").read_bytes() == (tmp_path / "a" / "out" / "train.bin").read_bytes()


def test_workers_share_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpus.tokens.available_cores", lambda: 8)
    assert [threads_each(workers) for workers in (1, 3, 16)] == [8, 2, 1]


def test_a_worker_that_is_killed_is_an_error_with_a_remedy(
    tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()

    def killed(*_: Any) -> Any:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("corpus.tokens.numbered_rows", killed)
    with pytest.raises(RuntimeError, match=r"killed by SIGKILL.*execution.workers lower \(2 were allowed\)"):
        make(tmp_path, tiny_corpus, tiny_tokenizer, execution={"workers": 2})
