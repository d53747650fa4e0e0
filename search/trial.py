"""One problem's search at work: its live sequences, its tree, its ledger.

Methods say what to branch, grow and keep; this does it, counts it, and holds the rules that no method may break: a
prefix is never prefilled or scored twice, a blank step is never scored, nothing starts that the budget could not let
finish, and what a limit cut short is no solution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.interface import Engine, Sampling, StepOut, Verifier
from search.budget import Spent
from search.scheduler import Extend, Open, Search, Step
from search.setup import Setup
from search.tree import Candidate, Node, Outcome, Status
from search.votes import Vote, aggregate, choose


@dataclass(eq=False)
class Path:
    """A solution as it grows."""

    seq: Any
    judge: Any
    """The verifier's sequence; None without one."""
    node: int = -1
    used: int = 0
    """Tokens of this solution."""
    scored: int = 0
    status: Status = "live"
    scores: list[float] = field(default_factory=list)
    ahead: float | None = None
    """Score of the last look ahead; None once the path has grown on."""
    unscored: list[int] = field(default_factory=list)
    """Nodes that the verifier has not seen."""
    blank: list[int] = field(default_factory=list)
    """Tokens of blank steps: the verifier reads them with the next step."""
    weight: float | None = None


Watch = Callable[[list[Node], Spent], None]


class Trial:
    """The tools of a method for one problem. Every method is a generator over these.

    `seed` and the order in which sequences start fix all that is drawn.
    """

    def __init__(
        self,
        engine: Engine,
        verifier: Verifier | None,
        setup: Setup,
        prompt: Sequence[int],
        seed: int,
        watch: Watch | None = None,
    ) -> None:
        self.setup = setup
        self.seed = seed
        self.nodes: list[Node] = []
        self.spent = Spent()
        self._engine = engine
        self._verifier = verifier
        self._prompt = prompt
        self._started = 0
        self._open: dict[int, Path] = {}
        self._watch = watch
        self._tight = False
        self.room_at_all = min(setup.budget.max_tokens, engine.context - len(prompt))

    @property
    def scoring(self) -> bool:
        return self._verifier is not None

    def left(self) -> int | None:
        """Tokens of the budget not yet spent; None without a limit."""
        total = self.setup.budget.tokens
        return None if total is None else total - self.spent.total

    def room(self, path: Path) -> int:
        """Tokens that the solution may still grow by."""
        return self.room_at_all - path.used

    def rank(self, path: Path) -> float:
        """What methods order paths by: the aggregated score, of the solution looked ahead where there is one."""
        ahead = [] if path.ahead is None else [path.ahead]
        return aggregate(path.scores + ahead, self.setup.aggregation)

    def root(self) -> Search[Path]:
        """The prompt, prefilled once; to be branched, never grown itself."""
        seq = yield Open(self._prompt)
        self.spent.prompt += len(self._prompt)
        path = Path(seq, None)
        self._open[id(path)] = path
        if self._verifier is not None:
            path.judge = yield Open(self._prompt, verifier=True)
            self.spent.prompt_scored += len(self._prompt)
        return path

    def branch(self, wanted: Sequence[Path], ahead: int = 0) -> list[Path]:
        """A child for each entry of `wanted`, most wanted first; as many as the budget surely lets finish.

        Each may take a full step (and look `ahead` tokens), and enough is kept back for one of them to reach its full
        length. Where not even one more step fits beside that reserve, one child gets the reserve itself.
        """
        admitted = self._affordable(wanted, ahead)
        children: dict[int, list[Path]] = {}
        for parent in dict.fromkeys(admitted):
            children[id(parent)] = self._fork(parent, sum(path is parent for path in admitted))
        return [children[id(parent)].pop(0) for parent in admitted]

    def _affordable(self, wanted: Sequence[Path], ahead: int) -> list[Path]:
        left = self.left()
        self._tight = False
        if left is None or not wanted:
            return list(wanted)
        each = 2 if self.scoring else 1
        left -= max(each * self.room(path) + len(path.blank) for path in wanted)
        admitted = []
        for path in wanted:
            step = min(self.setup.budget.step_tokens, self.room(path))
            left -= each * (step + ahead) + len(path.blank)
            if left < 0:
                break
            admitted.append(path)
        self._tight = not admitted
        return admitted or [wanted[0]]

    def _fork(self, parent: Path, count: int) -> list[Path]:
        seqs = self._engine.fork(parent.seq, [self._next_seed() for _ in range(count)])
        judges = self._verifier.fork(parent.judge, count) if self._verifier is not None else [None] * count
        children = [
            replace(parent, seq=seq, judge=judge, scores=list(parent.scores), blank=list(parent.blank), unscored=[])
            for seq, judge in zip(seqs, judges, strict=True)
        ]
        self._open.update((id(child), child) for child in children)
        return children

    def _next_seed(self) -> int:
        """The same for the i-th sequence of a problem, whatever the method plans to start after it."""
        digest = hashlib.sha256(f"{self.seed}/{self._started}".encode()).digest()
        self._started += 1
        return int.from_bytes(digest[:7], "little")

    def grow(self, paths: Sequence[Path], ahead: int = 0) -> Search[None]:
        """One step for each path, scored; then a look `ahead` of so many greedy tokens, scored as well."""
        limits = [min(self.setup.budget.step_tokens, self.room(path)) for path in paths]
        outs = yield Step([path.seq for path in paths], limits, self.setup.sampling, self.setup.splitter.stops)
        for path, out in zip(paths, outs, strict=True):
            self.take(path, out, [out.ids])
        yield from self.score(paths)
        if ahead and not self._tight:
            # With a blank step pending, the path has no score of its own yet that a look ahead could better.
            yield from self._look_ahead([path for path in paths if path.status == "live" and not path.blank], ahead)
        self._show()

    def start(self, root: Path, count: int) -> list[Path]:
        """Up to `count` new solutions, as many as the budget can pay at full length."""
        if (left := self.left()) is not None:
            count = min(count, left // (self.room_at_all * (2 if self.scoring else 1)))
        return self._fork(root, count) if count > 0 else []

    def run_out(self, paths: Sequence[Path], sampling: Sampling | None = None) -> Search[None]:
        """Each path to its end in one call, cut into steps afterwards, scored."""
        limits = [self.room(path) for path in paths]
        outs = yield Step([path.seq for path in paths], limits, sampling or self.setup.sampling)
        for path, out in zip(paths, outs, strict=True):
            self.take(path, out, self.setup.splitter.split(out.ids))
        yield from self.score(paths)
        self._show()

    def take(self, path: Path, out: StepOut, steps: Sequence[list[int]]) -> None:
        """Book what the engine added to `path`: tokens, nodes, status."""
        self.spent.generated += len(out.ids)
        path.used += len(out.ids)
        path.ahead = None
        self.add_steps(path, steps)
        if out.finish == "eos":
            path.status = "finished"
        elif out.finish == "context" or self.room(path) <= 0:
            path.status = "cut"
        if path.node >= 0:
            self.nodes[path.node].status = path.status

    def add_steps(self, path: Path, steps: Sequence[list[int]]) -> None:
        """Hang new nodes under the last one of `path`."""
        for ids in steps:
            if ids:
                self.nodes.append(Node(path.node, ids, status="live"))
                path.node = len(self.nodes) - 1
                path.unscored.append(path.node)
        if path.node >= 0:
            self.nodes[path.node].status = path.status

    def cut(self, path: Path) -> None:
        """End a solution that the method cannot carry further: it is none, and does not vote."""
        path.status = "cut"
        if path.node >= 0:
            self.nodes[path.node].status = "cut"

    def score(self, paths: Sequence[Path]) -> Search[None]:
        """Let the verifier read the new steps of `paths`."""
        if self._verifier is None:
            return
        pending = [(path, nodes, steps) for path in paths for nodes, steps in [self._pending(path)] if nodes]
        if not pending:
            return
        scores = yield Extend([path.judge for path, _, _ in pending], [steps for _, _, steps in pending])
        for (path, nodes, steps), found in zip(pending, scores, strict=True):
            path.scores += found
            path.scored += sum(map(len, steps))
            self.spent.scored += sum(map(len, steps))
            for node, score in zip(nodes, found, strict=True):
                self.nodes[node].score = score

    def _pending(self, path: Path) -> tuple[list[int], list[list[int]]]:
        """Nodes to be scored, and their tokens: a blank step is read with the one behind it."""
        nodes, steps = [], []
        for node in path.unscored:
            path.blank = path.blank + self.nodes[node].ids
            if self.setup.splitter.text(self.nodes[node].ids).strip():
                nodes.append(node)
                steps.append(path.blank)
                path.blank = []
        path.unscored = []
        return nodes, steps

    def _look_ahead(self, paths: Sequence[Path], tokens: int) -> Search[None]:
        """Greedy continuations of `paths`, generated, counted, scored, and thrown away (Snell et al. 2024,
        arXiv:2408.03314, section 5.2)."""
        if not paths:
            return
        scouts = [self._scout(path) for path in paths]
        greedy = Sampling(temperature=0)
        outs = yield Step([scout.seq for scout in scouts], [min(tokens, self.room(path)) for path in paths], greedy)
        read = []
        for scout, out in zip(scouts, outs, strict=True):
            self.spent.generated += len(out.ids)
            if self.setup.splitter.text(out.ids).strip():
                scout.blank += out.ids
                read.append(scout)
        if read and self._verifier is not None:
            scores = yield Extend([scout.judge for scout in read], [[scout.blank] for scout in read])
            for scout, [score] in zip(read, scores, strict=True):
                self.spent.scored += len(scout.blank)
                scout.ahead = score
        for path, scout in zip(paths, scouts, strict=True):
            path.ahead = self.nodes[path.node].ahead = scout.ahead
        self.drop(scouts)

    def _scout(self, path: Path) -> Path:
        """A fork that takes none of the seeds of real solutions: it draws nothing."""
        [seq] = self._engine.fork(path.seq, [0])
        judge = self._verifier.fork(path.judge, 1)[0] if self._verifier is not None else None
        scout = replace(path, seq=seq, judge=judge, blank=list(path.blank), ahead=None)
        self._open[id(scout)] = scout
        return scout

    def drop(self, paths: Sequence[Path]) -> None:
        """Free the caches of paths that grow no further. Twice is once."""
        gone = [path for path in dict.fromkeys(paths) if self._open.pop(id(path), None) is not None]
        if gone:
            self._engine.close([path.seq for path in gone])
        if self._verifier is not None and (judges := [path.judge for path in gone if path.judge is not None]):
            self._verifier.close(judges)

    def close(self) -> None:
        self.drop(list(self._open.values()))

    def conclude(self, paths: Sequence[Path], vote: Vote) -> Outcome:
        """The outcome of a search that ended with `paths`."""
        candidates = self.candidates(paths)
        chosen = choose(candidates, vote, self.setup.reader.same)
        answer = None if chosen is None else candidates[chosen].answer
        return Outcome(answer, chosen, candidates, self.nodes, self.spent)

    def candidates(self, paths: Sequence[Path]) -> list[Candidate]:
        return [self._candidate(path) for path in paths]

    def _candidate(self, path: Path) -> Candidate:
        text = self.setup.splitter.text(self.ids(path.node)).strip()
        return Candidate(
            node=path.node,
            text=text,
            answer=self.setup.reader.extract(text),
            finished=path.status == "finished",
            step_scores=path.scores,
            score=aggregate(path.scores, self.setup.aggregation),
            generated=path.used,
            scored=path.scored,
            weight=path.weight,
        )

    def ids(self, node: int) -> list[int]:
        """Tokens from the prompt's end to the end of `node`."""
        steps = []
        while node >= 0:
            steps.append(self.nodes[node].ids)
            node = self.nodes[node].parent
        return [token for step in reversed(steps) for token in step]

    def _show(self) -> None:
        if self._watch:
            self._watch(self.nodes, self.spent)
