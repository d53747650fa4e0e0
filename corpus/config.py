"""Typed config of the corpus stages: `problems`, `text`, `filter`, `dedup`, `decontaminate`, `tokenizer`, `tokens`.

Identity fields enter the artifact's key. Outside data is named by `Source` fields: the key holds the digest of its
content, so every result here depends on contents and never on where a file lies or what its folder is called.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from acorn.stage import Execution, Identity, Source

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""In this order, from id 0 (docs/artifacts.md, Text conventions)."""

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""Every byte and every special token; anything learned comes on top."""


class Part(BaseModel):
    """A part of an identity: strict and frozen like the whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Mix(Part):
    """Shares of the pre-training documents, by number of documents; they need not add up to 1.

    30 : 55 : 15 is what small models learned fastest from: bare equations teach the arithmetic, problems its use.
    """

    problems: float = Field(default=0.30, ge=0)
    equations: float = Field(default=0.55, ge=0)
    prose: float = Field(default=0.15, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.problems + self.equations + self.prose <= 0:
            raise ValueError("every weight of the mix is 0: give at least one of problems, equations, prose a share")
        return self


class ProblemsIdentity(Identity):
    """The procedural world; all of it follows from `seed`."""

    seed: int = 0
    documents: int = Field(default=20_000, ge=1)
    """Pre-training documents (train); 86 tokens each on average with 1,024 entries."""
    validation_documents: int = Field(default=500, ge=1)
    """Held-out documents of the same mix."""
    mix: Mix = Mix()
    problems_train: int = Field(default=5_000, ge=0)
    """Problems for synthetic data, SFT, DPO; spread evenly over the levels."""
    problems_test: int = Field(default=500, ge=0)
    puzzles: Literal["changes", "purchases"] = "changes"
    """`changes`: the question tells step by step what happens; level n takes n + 1 steps, level 4 adds one distractor
    sentence, level 5 two. `purchases`: the steps are to be chosen, among n + 3 things at level n."""
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    license: str = "Apache-2.0"

    @model_validator(mode="after")
    def _known_levels(self) -> Self:
        if unknown := sorted(set(self.levels) - {1, 2, 3, 4, 5}):
            raise ValueError(f"levels: {unknown} are not among 1, 2, 3, 4, 5")
        if not self.levels:
            raise ValueError("levels: name at least one of 1, 2, 3, 4, 5")
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels: {list(self.levels)} names a level twice; the levels are spread evenly")
        return self


class Rows(Part):
    """How rows of local files are read that nothing sensible can be made of."""

    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Lines that are not UTF-8, not JSON or too long, rows without the column or with something else than text in it:
    an error that names the place, or left out and counted."""
    largest_row: int = Field(default=100_000_000, ge=1)
    """Bytes of the longest line (of Parquet: of the longest text) that is taken for a row."""

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without these two at their defaults: they came later, and no key of an older recipe should change."""
        later = {name: field.default for name, field in Rows.model_fields.items()}
        return {name: value for name, value in plain(self).items() if name not in later or value != later[name]}


class TextSource(Rows):
    """Somebody's own text: a local file or folder, or a hub data set id."""

    path: Source
    format: Literal["auto", "txt", "md", "jsonl", "parquet", "hub"] = "auto"
    """`auto` goes by the ending: .txt, .md, .jsonl, .jsonl.gz, .parquet (of a folder: every such file in it)."""
    text_field: str = "text"
    """Column of jsonl, parquet and hub rows; one row is one document."""
    document_characters: int = Field(default=4_000, ge=1)
    """Plain text is cut into documents at blank lines: paragraphs are put together up to this many characters."""
    label: str = "text"
    """`source` of the documents, which evaluation and statistics go by."""
    name: str | None = None
    """Hub: name of the data set's configuration."""
    split: str = "train"
    validation_split: str | None = None
    """Hub: the data set's own split for validation; default: hold-out by hash."""
    revision: str | None = None
    """Hub: commit to pin; without it the id alone stands for the data."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most so many documents of this source."""


class ProblemSource(Rows):
    """Problems with worked answers in GSM8K's form: `question` and `answer`, the answer's last line `#### N`."""

    path: Source
    format: Literal["auto", "jsonl", "parquet", "hub"] = "auto"
    question_field: str = "question"
    answer_field: str = "answer"
    label: str = "problems"
    name: str | None = None
    split: str = "train"
    test_path: Source | None = None
    """Local: the source's own test rows; default: hold-out by hash of the question."""
    test_split: str | None = None
    """Hub: the source's own test split, likewise."""
    revision: str | None = None
    limit: int | None = Field(default=None, ge=1)


class TextIdentity(Identity):
    """Text and problems from outside."""

    text: tuple[TextSource, ...] = ()
    problems: tuple[ProblemSource, ...] = ()
    problems_as_text: bool = True
    """Whether the train problems are pre-training documents, too."""
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the documents held out, chosen by a hash of their text."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the problems held out where the source has no test part, chosen by a hash of the question."""
    license: str
    """Licence of the data, such as `"MIT"` or `"CC-BY-SA-3.0"`; it goes into every descendant's manifest."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.text and not self.problems:
            raise ValueError("text and problems are both empty: name at least one source")
        return self


class Judged(Identity):
    """Which documents a step looks at; the others pass."""

    sources: tuple[str, ...] | None = None
    """Only documents with these `source` labels; default: all. Problems and equations share their templates, so give
    the labels of the prose where a corpus has both."""
    language: str | None = None
    """Words by datatrove's tokenizer for this language code, such as `en` (spaCy) or `de`; its package must be
    installed. Default: rules that need no package and no download (corpus/datatrove/words.py)."""


class Classifier(Part):
    """A sequence-classification model of transformers that scores each document, as FineWeb-Edu's does."""

    model: Source | None = None
    """Folder or hub id; default: the step's input `classifier`."""
    revision: str | None = None
    """Hub: commit of `model`."""
    threshold: float
    """Documents with a lower score are removed."""
    label: str | int | None = None
    """Whose probability is the score, for a model with several labels; a model with one label gives its output."""


FINEWEB_FILTERS: tuple[dict[str, Any], ...] = (
    {"type": "GopherRepetitionFilter"},
    {"type": "GopherQualityFilter"},
    {"type": "C4QualityFilter", "filter_no_terminal_punct": False},
    {"type": "FineWebQualityFilter"},
)
"""The quality filters of FineWeb in its order (Penedo et al. 2024, arXiv:2406.17557, section 3)."""


class FilterIdentity(Judged):
    """Quality filters, one after the other."""

    filters: tuple[dict[str, Any], ...] = FINEWEB_FILTERS
    """Each a class of datatrove (`type`) with its own options."""
    classifier: Classifier | None = None
    """Judges what the filters keep; the score stays with the document."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.filters and self.classifier is None:
            raise ValueError("filters and classifier are both empty: name at least one filter")
        return self


class DedupIdentity(Judged):
    """Duplicates; of each group the first document stays, held-out ones coming before train."""

    exact: bool = True
    """Equal texts; also finds those too short for an n-gram."""
    minhash: dict[str, Any] | None = Field(default_factory=dict)
    """datatrove's MinhashConfig: n_grams (5), num_buckets (14), hashes_per_bucket (8), seed, norm_config, hash_config;
    two documents are found with probability 1 - (1 - s^8)^14 where they have a share s of their different 5-grams in
    common. null: exact duplicates alone."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.exact and self.minhash is None:
            raise ValueError("exact is false and minhash null: turn one of them on")
        return self


class DecontaminateIdentity(Judged):
    """Train documents that share an n-gram with what will be evaluated on."""

    n_grams: int = Field(default=13, ge=2)
    """Words in a row, as in GPT-3's decontamination (Brown et al. 2020, arXiv:2005.14165, appendix C)."""
    norm_config: dict[str, Any] = Field(default_factory=lambda: {"norm_numbers": False})
    """datatrove's TextNormConfig. Its own default reads every number as 0, by which all word problems of one wording
    would be the same."""
    texts: tuple[Literal["problems", "prose"], ...] = ("problems", "prose")
    """Of each corpus to compare with: the test problems with their solutions, the validation documents."""


class TokenizerIdentity(Identity):
    """A byte-level BPE trained on the corpus, or an existing tokenizer taken as it is."""

    vocab_size: int = 2_048
    """Entries including 256 bytes and 4 special tokens; ignored with `pretrained`."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair seen less often is not merged."""
    documents: int = Field(default=50_000, ge=1)
    """Train on so many documents at most, taken evenly from the whole corpus. 30,000 short ones cost 6 s of CPU;
    half of them gave 996 of the same 1,024 entries."""
    template: Source | None = None
    """File of an own chat template; default: `corpus/chat_template.jinja`."""
    pretrained: Source | None = None
    """Folder or hub id of a tokenizer to take instead of training one."""
    revision: str | None = None
    """Hub: commit of `pretrained`."""

    @model_validator(mode="after")
    def _room_for_bytes(self) -> Self:
        if self.pretrained is None and self.vocab_size <= SMALLEST_VOCABULARY:
            raise ValueError(
                f"vocab_size: {self.vocab_size} leaves no room to learn from: 256 bytes and {len(SPECIAL_TOKENS)} "
                f"special tokens take {SMALLEST_VOCABULARY}; set 512 or more"
            )
        return self


class TokensIdentity(Identity):
    """The corpus as token ids."""

    seed: int = 0
    """Of the order of the documents."""
    document_token: str | None = None
    """Token that opens each document; default: the tokenizer's `bos`."""
    minimum_tokens: int = Field(default=1, ge=1)
    """Refuse a corpus with fewer train tokens."""


class CorpusExecution(Execution):
    """Nothing to choose: these stages run on one CPU process."""


class PipelineExecution(Execution):
    """How datatrove's pipelines run. `device` is where a classifier runs."""

    executor: Literal["local", "slurm", "ray"] = "local"
    tasks: int | None = Field(default=None, ge=1)
    """Ranges into which the documents are cut; default: one a core, and none under 2,000 documents."""
    workers: int | None = Field(default=None, ge=1)
    """Tasks at a time; default: locally one a core (one alone where a classifier uses a GPU), elsewhere all."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of datatrove's executor; Slurm's needs `time` and `partition`."""
    poll_seconds: float = Field(default=10, gt=0)
    """Slurm: time between two looks at the tasks."""


class TokensExecution(Execution):
    """How the work is cut up."""

    batch_documents: int = Field(default=1_024, ge=1)
    """Documents tokenised at a time; memory grows with it, the result does not change."""
    workers: int = Field(default=1, ge=1)
    """Processes, each with its share of the cores. A tenth of the work is outside the library's threads, so a single
    process cannot use much more than ten cores."""
