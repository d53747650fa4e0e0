"""What `search` offers to recipes: plain data, no heavy import."""

from __future__ import annotations

from acorn.stage import Execution, Stage
from search.config import ComparisonConfig, PolicyConfig, SearchConfig, SearchExecution

SEARCH = Stage(
    name="search",
    package="search",
    version=1,
    identity=SearchConfig,
    execution=SearchExecution,
    inputs={"corpus": "corpus", "model": "model", "prm?": "prm"},
    output="search",
    run="search.run:run",
    launcher="torchrun",
    imports_torch=True,
    check="search.check:check",
)

SEARCH_POLICY = Stage(
    name="search_policy",
    package="search",
    version=2,
    identity=PolicyConfig,
    execution=Execution,
    inputs={"fit": "search", "apply": "search"},
    output="search_policy",
    run="search.policy:run",
)

SEARCH_COMPARISON = Stage(
    name="search_comparison",
    package="search",
    version=1,
    identity=ComparisonConfig,
    execution=Execution,
    more="search",
    output="search_comparison",
    run="search.comparison:run",
)

STAGES: tuple[Stage, ...] = (SEARCH, SEARCH_POLICY, SEARCH_COMPARISON)
