"""Stage `text`: somebody's own text and problems as a corpus.

What is held out is chosen by a hash of the text, not by chance: the same document lands on the same side whatever else
the corpus holds, and duplicates never straddle the split. Test problems are read before train problems, and a question
met before is rejected, so train and test share no question. Memory holds a hash of every question, nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from acorn.problems import WordProblem, as_document, final_answer, first_wrong_step, split_steps
from acorn.stage import Job
from corpus.config import ProblemSource, TextIdentity, TextSource
from corpus.sources import is_hub, problem_rows, refuse_misplaced, text_documents
from corpus.writing import CorpusWriter, to_line

_LEVELS = 5
"""GSM8K's solutions take 1 to 8 steps; those of 5 and more share the highest level."""


class Rejected(NamedTuple):
    """A problem row that does not enter the corpus, and why."""

    id: str
    question: str
    solution: str
    reason: str
    step: int | None = None
    """The first step that is wrong, from 1."""


def run(job: Job) -> dict[str, float]:
    """Write a `corpus` artifact, and `rejected.jsonl` where there are problem sources. Returns the counts.

    Raises FileNotFoundError or ValueError for sources that cannot be read, and ValueError where nothing was held out.
    """
    config: TextIdentity = job.config
    sources: tuple[TextSource | ProblemSource, ...] = (*config.text, *config.problems)
    for source in sources:
        refuse_misplaced(source)
    with CorpusWriter(job.out) as writer:
        notes: Counter[str] = Counter()
        if config.problems:
            _write_problems(config, writer, job, notes)
        for text_source in config.text:
            _write_documents(text_source, config, writer, job, notes)
        rejected = notes.total() - notes["blank_documents"] - notes["empty_files"]
        writer.notes["left_out"] = {reason: notes[reason] for reason in sorted(notes)}
        _refuse_gaps(config, writer)
    return writer.metrics() | {"corpus/rejected": float(rejected)}


def _write_documents(
    source: TextSource, config: TextIdentity, writer: CorpusWriter, job: Job, notes: Counter[str]
) -> None:
    own_validation = is_hub(source.path, source.format) and source.validation_split
    fraction = 0.0 if own_validation else config.validation_fraction
    for text in tqdm(text_documents(source, source.split, notes, job.scratch), desc=source.label, mininterval=1):
        writer.document(part_of(text, fraction), text, source.label)
    if own_validation:
        for text in text_documents(source, own_validation, notes, job.scratch):
            writer.document("validation", text, source.label)


def part_of(text: str, fraction: float) -> Literal["train", "validation"]:
    """Where a document belongs: a `fraction` of all hashes is held out."""
    return "validation" if _hash(text) < fraction * 2**64 else "train"


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _write_problems(config: TextIdentity, writer: CorpusWriter, job: Job, notes: Counter[str]) -> None:
    seen: set[int] = set()
    with (job.out / "rejected.jsonl").open("w", encoding="utf-8") as file:
        for part in ("test", "train"):  # test first: a question that is in both stays a test question
            for source in config.problems:
                rows = _part_rows(source, part, config.test_fraction, notes, job.scratch)
                for index, question, solution in tqdm(rows, desc=f"{source.label} {part}", mininterval=1):
                    row = _problem(f"{source.label}-{part}-{index:06d}", question, solution, seen)
                    if isinstance(row, Rejected):
                        file.write(to_line(row._asdict()))
                        notes[row.reason] += 1
                        continue
                    writer.problem(part, row)
                    if part == "train" and config.problems_as_text:
                        text = as_document(row["question"], row["solution"])
                        writer.document(part_of(text, config.validation_fraction), text, source.label)


def _part_rows(
    source: ProblemSource, part: str, fraction: float, notes: Counter[str], kept: Path
) -> Iterator[tuple[int, str, str]]:
    """Rows (position in the source, question, worked answer) of one part of a problem source."""
    own_test = source.test_split if is_hub(source.path, source.format) else source.test_path
    if own_test and part == "test":
        path, split = source.test_path or source.path, source.test_split or source.split
        rows = problem_rows(source, path, split, notes, kept)
    else:  # read twice where there is no test part; what is bad counts once
        rows = problem_rows(source, source.path, source.split, notes if part == "train" else Counter(), kept)
    for index, (question, solution) in enumerate(rows):
        held_out = _hash(" ".join(question.split())) < fraction * 2**64
        if own_test or held_out == (part == "test"):
            yield index, question.strip(), solution.replace("\r\n", "\n").strip()


def _problem(row_id: str, question: str, solution: str, seen: set[int]) -> WordProblem | Rejected:
    """The row as a problem, or why it is none; an accepted question is added to `seen`."""
    key = _hash(" ".join(question.split()))
    if not question:
        return Rejected(row_id, question, solution, "no question")
    if (answer := final_answer(solution)) is None:
        return Rejected(row_id, question, solution, "no number after ####")
    if key in seen:
        return Rejected(row_id, question, solution, "question seen before")
    if (wrong := first_wrong_step(solution)) is not None:
        return Rejected(row_id, question, solution, "an equation does not hold", wrong + 1)
    seen.add(key)
    level = min(max(len(split_steps(solution)), 1), _LEVELS)
    return WordProblem(id=row_id, question=question, solution=solution, answer=_exact(answer), level=level)


def _exact(value: Fraction) -> str:
    """`5`, `0.25`: every number that was written in decimals has such a form."""
    if value.denominator == 1:
        return str(value.numerator)
    return format(Decimal(value.numerator) / Decimal(value.denominator), "f")


def _refuse_gaps(config: TextIdentity, writer: CorpusWriter) -> None:
    count = {part: counter.total() for part, counter in writer.documents.items()}
    if config.text and not count["train"]:
        raise ValueError(f"no train documents: the text sources gave {count['validation']} for validation and no other")
    if count["train"] and not count["validation"] and config.validation_fraction:
        raise ValueError(
            f"no document fell into validation: {config.validation_fraction} of {count['train']} documents is too few; "
            "raise validation_fraction, set it to 0, or cut smaller documents (document_characters)"
        )
