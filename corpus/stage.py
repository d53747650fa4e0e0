"""What the corpus package offers to recipes: plain data, no heavy import."""

from __future__ import annotations

from acorn.stage import Stage
from corpus.config import (
    CorpusExecution,
    DecontaminateIdentity,
    DedupIdentity,
    FilterIdentity,
    PipelineExecution,
    ProblemsIdentity,
    TextIdentity,
    TokenizerIdentity,
    TokensExecution,
    TokensIdentity,
)

PROBLEMS = Stage(
    name="problems",
    package="corpus",
    version=1,
    identity=ProblemsIdentity,
    execution=CorpusExecution,
    output="corpus",
    run="corpus.problems:run",
)

TEXT = Stage(
    name="text",
    package="corpus",
    version=1,
    identity=TextIdentity,
    execution=CorpusExecution,
    output="corpus",
    run="corpus.text:run",
)

FILTER = Stage(
    name="filter",
    package="corpus",
    version=1,
    identity=FilterIdentity,
    execution=PipelineExecution,
    inputs={"corpus": "corpus", "classifier?": "model"},
    output="corpus",
    run="corpus.filter:run",
    check="corpus.check:check_filter",
)

DEDUP = Stage(
    name="dedup",
    package="corpus",
    version=1,
    identity=DedupIdentity,
    execution=PipelineExecution,
    inputs={"corpus": "corpus"},
    output="corpus",
    run="corpus.dedup:run",
    check="corpus.check:check_dedup",
)

DECONTAMINATE = Stage(
    name="decontaminate",
    package="corpus",
    version=1,
    identity=DecontaminateIdentity,
    execution=PipelineExecution,
    inputs={"corpus": "corpus", "against": "corpus"},
    more="corpus",
    output="corpus",
    run="corpus.decontaminate:run",
    check="corpus.check:check_decontaminate",
)

TOKENIZER = Stage(
    name="tokenizer",
    package="corpus",
    version=1,
    identity=TokenizerIdentity,
    execution=CorpusExecution,
    inputs={"corpus?": "corpus"},
    output="tokenizer",
    run="corpus.tokenizers:run",
    imports_torch=True,
)

TOKENS = Stage(
    name="tokens",
    package="corpus",
    version=1,
    identity=TokensIdentity,
    execution=TokensExecution,
    inputs={"corpus": "corpus", "tokenizer": "tokenizer"},
    output="tokens",
    run="corpus.tokens:run",
)

STAGES: tuple[Stage, ...] = (PROBLEMS, TEXT, FILTER, DEDUP, DECONTAMINATE, TOKENIZER, TOKENS)
