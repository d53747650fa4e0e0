"""acorn's search beside Search and Learn's own search functions, on one engine, one PRM, and the same problems.

`python -m benchmarks.search_and_learn --search-and-learn CHECKOUT [--model REF] [--prm REF] [--corpus REF] [--n 16]`

CHECKOUT is a clone of huggingface/search-and-learn (measured at commit 6f81cac); nothing is fetched. Its `best_of_n`,
`beam_search` and `dvts` are called unchanged. They get the torch engine as `llm` and the PRM as `prm`:

- `llm` takes texts, as theirs does, and tokenises them. "text" is just that: every continuation is prefilled again, and
  may be spelt in other tokens than the model drew. (GPT-2's pre-tokenizer makes a blank line one token at a text's end
  and two before a letter: our models have never seen the one, and go astray behind it. Llama 3's does not do this.) In
  "kept" the adapter recognises a text that it gave out itself and forks the sequence it came from: a prefix cache that
  never misses, and no re-tokenising. vLLM's prefix cache, theirs in production, lies between the two.
- `prm` runs the whole text through the model at each call, in batches of `prm_batch_size`, as their classes do.

Both sides decide alike (best last score) and have the same `n`, width, temperature and tokens a solution; theirs bounds
a step by `max_tokens`, not a solution (2048 in DVTS, so there the context). What a side spent is counted by the engine
and the PRM, not by the side. Sides take turns batch by batch; one problem on each side comes first and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from acorn.answers import Answers
from acorn.problems import WordProblem
from benchmarks.search_and_learn_adapter import DELIMITER, Llm, Prm, load_theirs
from engine.interface import Engine, Sampling, Verifier
from search.budget import Budget
from search.config import SearchConfig
from search.intervals import interval
from search.methods import search, seed_of
from search.options import Beam, BestOfN, Dvts, Options
from search.problems import encode, load_problems
from search.setup import Setup
from search.steps import StepSplitter

SIDES = ("text", "kept", "acorn")
METHODS = ("best_of_n", "beam_search", "dvts")


@dataclass
class Spent:
    """One side's totals of one method; `right` has an entry for each problem."""

    right: list[float] = field(default_factory=list)
    drawn: int = 0
    run: int = 0
    """Prompt and drawn tokens through the model."""
    scored: int = 0
    """Tokens through the PRM, prompts included."""
    seconds: float = 0.0


@dataclass
class Bench:
    """Everything both sides share."""

    arguments: argparse.Namespace
    engine: Engine
    verifier: Verifier
    tokenizer: Any
    setup: Setup
    splitter: StepSplitter
    llms: dict[str, Llm]
    prm: Prm
    theirs: tuple[type, dict[str, Callable[..., Any]]]

    def run(self, side: str, method: str, problems: list[WordProblem], spent: Spent) -> None:
        """One batch of problems by one side, booked on `spent`."""
        before, scored = self.engine.usage(), self._scored(side)
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            answers = self._acorn(method, problems) if side == "acorn" else self._theirs(side, method, problems)
        spent.seconds += time.perf_counter() - started
        used = self.engine.usage() - before
        spent.drawn += used.generated
        spent.run += used.prompt + used.fed
        spent.scored += self._scored(side) - scored
        same = self.setup.reader.same
        pairs = zip(answers, problems, strict=True)
        spent.right += [float(answer is not None and same(row["answer"], answer)) for answer, row in pairs]

    def _scored(self, side: str) -> int:
        return self.verifier.usage().prompt if side == "acorn" else self.prm.tokens

    def _acorn(self, method: str, problems: list[WordProblem]) -> list[str | None]:
        prompts = [encode(self.tokenizer, row["question"], "chat") for row in problems]
        seeds = [seed_of(self.arguments.seed, row["id"]) for row in problems]
        options = self._options(method)
        outcomes = search(self.engine, self.verifier, prompts, seeds, options, self.setup, batch=len(problems))
        return [outcome.answer for outcome in outcomes]

    def _options(self, method: str) -> Options:
        n, width = (self.arguments.n,), self.arguments.width
        if method == "best_of_n":
            return BestOfN(n=n)
        return (Beam if method == "beam_search" else Dvts)(n=n, width=width, vote="best")

    def _theirs(self, side: str, method: str, problems: list[WordProblem]) -> list[str | None]:
        config_class, functions = self.theirs
        config = config_class(
            approach=method,
            n=self.arguments.n,
            beam_width=self.arguments.width,
            temperature=self.arguments.temperature,
            max_tokens=self.arguments.max_tokens,
            search_batch_size=1 if method == "beam_search" else self.arguments.batch,
            system_prompt="",
            custom_chat_template=_without_empty_system(self.tokenizer.chat_template),
        )
        size = config.search_batch_size
        answers: list[str | None] = []
        for start in range(0, len(problems), size):
            texts = {"problem": [row["question"] for row in problems[start : start + size]]}
            found = functions[method](texts, config, self.llms[side], self.prm)
            answers += [self.setup.reader.extract(text) for text in found["pred"]]
        self.llms[side].forget()
        return answers


def _without_empty_system(template: str) -> str:
    """Theirs always sends a system message; the models here were trained without one."""
    return "{%- if not messages[0].content %}{%- set messages = messages[1:] %}{%- endif %}" + template


def measure(bench: Bench, problems: list[WordProblem]) -> dict[tuple[str, str], Spent]:
    """Every method and side over all problems, a batch at a time, sides in another order each time."""
    size = bench.arguments.batch
    batches = [problems[start : start + size] for start in range(0, len(problems), size)]
    sides = [side for side in SIDES if side in bench.arguments.sides]
    totals = {(method, side): Spent() for method in bench.arguments.methods for side in sides}
    for method in bench.arguments.methods:
        for side in sides:
            bench.run(side, method, batches[0][:1], Spent())  # imports, kernels, caches
        for turn, batch in enumerate(tqdm(batches, desc=method)):
            for place in range(len(sides)):
                side = sides[(turn + place) % len(sides)]
                bench.run(side, method, batch, totals[method, side])
    return totals


def print_table(totals: dict[tuple[str, str], Spent], arguments: argparse.Namespace) -> None:
    """The table for people, then one line of JSON."""
    figures: dict[str, Any] = {"benchmark": "search_and_learn", "n": arguments.n, "problems": arguments.problems}
    names = {"text": "Search and Learn", "kept": "  its sequences kept", "acorn": "acorn"}
    print(
        f"{'method':<12}{'side':<22}{'accuracy (95 %)':<24}{'drawn':>8}{'run':>9}{'scored':>9}{'seconds':>9}  a problem"
    )
    for (method, side), spent in totals.items():
        count, right = len(spent.right), interval(spent.right)
        each = [value / count for value in (spent.drawn, spent.run, spent.scored, spent.seconds)]
        accuracy = f"{right.mean:.3f} ({right.low:.3f} to {right.high:.3f})"
        print(
            f"{method:<12}{names[side]:<22}{accuracy:<24}{each[0]:>8.0f}{each[1]:>9.0f}{each[2]:>9.0f}{each[3]:>9.3f}"
        )
        rounded = [round(value, 3) for value in each]
        keys = ("drawn", "run", "scored", "seconds")
        figures[f"{method}_{side}"] = {"accuracy": round(right.mean, 4), **dict(zip(keys, rounded, strict=True))}
    for method in arguments.methods:
        ours = totals[method, "acorn"]
        for side in SIDES[:2]:
            if side not in arguments.sides:
                continue
            other = totals[method, side]
            speedup = round(other.seconds / ours.seconds, 2)
            gain = interval([one - two for one, two in zip(ours.right, other.right, strict=True)])
            figures[f"speedup_{method}_over_{side}"] = speedup
            figures[f"accuracy_gain_{method}_over_{side}"] = round(gain.mean, 4)
            print(
                f"{method}: acorn is {speedup}x as fast as {names[side].strip()}, "
                f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            )
    print(json.dumps(figures))


def locate(name: str) -> Path:
    """A folder, or an artifact of `$ACORN_HOME` by ref or key."""
    if Path(name).is_dir():
        return Path(name)
    from registry.errors import RegistryError
    from registry.store import Registry

    home = Path(os.environ.get("ACORN_HOME", ".acorn"))
    try:
        return Registry(home).get(name).path
    except RegistryError as error:
        raise SystemExit(f"{error}\ntrain a model and a PRM first: acorn run configs/quickstart.yaml") from error


def main() -> None:
    arguments = _arguments()
    theirs = load_theirs(arguments.search_and_learn)
    from transformers import AutoTokenizer

    from engine.load import pick_device
    from engine.prm import load_verifier
    from engine.torch import TorchEngine

    model, prm, corpus = (locate(name) for name in (arguments.model, arguments.prm, arguments.corpus))
    device = pick_device(arguments.device)
    tokenizer = AutoTokenizer.from_pretrained(model)
    splitter = StepSplitter(tokenizer, DELIMITER)
    engine = TorchEngine(model, device=device, dtype=arguments.dtype)
    verifier = load_verifier(prm, policy_tokenizer=tokenizer, device=device, dtype=arguments.dtype)
    problems = load_problems(corpus, SearchConfig(methods=(BestOfN(),), problems=arguments.problems))
    with Answers() as answers:
        sampling = Sampling(temperature=arguments.temperature)
        setup = Setup(Budget(arguments.max_tokens), splitter, answers, sampling, aggregation="last")
        llms = {side: Llm(engine, copy.deepcopy(tokenizer), splitter, side == "kept") for side in SIDES[:2]}
        whole = Prm(verifier, tokenizer, splitter, arguments.prm_batch_size)
        bench = Bench(arguments, engine, verifier, tokenizer, setup, splitter, llms, whole, theirs)
        print_table(measure(bench, problems), arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--search-and-learn", type=Path, required=True, help="a checkout of huggingface/search-and-learn"
    )
    for role, default in (("model", "quickstart/dpo"), ("prm", "quickstart/prm"), ("corpus", "quickstart/corpus")):
        parser.add_argument(f"--{role}", default=default, help=f"folder, ref or key (default: {default})")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--sides", nargs="+", choices=SIDES[:2], default=SIDES[:2], help="of Search and Learn")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prm-batch-size", type=int, default=4, help="theirs; 4 is its default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    arguments.sides = (*arguments.sides, "acorn")
    return arguments


if __name__ == "__main__":
    main()
