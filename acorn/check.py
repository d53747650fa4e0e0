"""Asks the libraries about the arguments a recipe passes through to them, before anything runs.

Building an `SFTConfig` imports torch (seconds), so it happens in one process per stage package, side by side, and the
answer is remembered under `$ACORN_HOME/checks` for the same arguments and library versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from acorn.launch import own_modules
from acorn.provenance import library_versions
from acorn.recipe import Fault, Recipe, Step
from acorn.stages import stages


def library_faults(recipe: Recipe, home: Path) -> list[Fault]:
    """Faults that the stages' libraries find in the recipe's arguments."""
    packages: dict[str, list[Step]] = {}
    for step in recipe.steps.values():
        if step.stage.check:
            packages.setdefault(step.stage.package, []).append(step)
    answers = [_ask(steps, home) for steps in packages.values()]
    faults = []
    for answer in answers:
        for name, problem in answer():
            block = "execution" if _in_execution(recipe.steps[name], problem["field"]) else "config"
            path = problem["field"].removeprefix("execution.").removeprefix("config.").split(".")
            where = recipe.where(("steps", name, block, *path))
            faults.append(Fault(where, f"{name}.{block}.{'.'.join(path)}", problem["message"]))
    return faults


def _in_execution(step: Step, field: str) -> bool:
    head = field.split(".")[0]
    return head == "execution" or (head != "config" and head not in step.stage.identity.model_fields)


def _ask(steps: list[Step], home: Path) -> Any:
    """Start asking about `steps`; the function returned waits for `[(step name, problem)]`."""
    questions = [
        {
            "step": step.name,
            "stage": step.stage.name,
            "config": step.identity.model_dump(mode="json"),
            "execution": step.execution.model_dump(mode="json"),
        }
        for step in steps
    ]
    asker = Path(__file__).parent.parent / steps[0].stage.package / "check.py"  # a stricter check asks again
    facts = {"questions": questions, "versions": library_versions(), "check": asker.read_text(encoding="utf-8")}
    text = json.dumps(facts, sort_keys=True)
    remembered = home / "checks" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if remembered.exists():
        return lambda: json.loads(remembered.read_text())
    process = subprocess.Popen(
        [sys.executable, "-m", "acorn.check"],
        env=_alone(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(questions).encode())
    process.stdin.close()
    process.stdin = None

    def answer() -> Any:
        out, err = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"checking {', '.join(step.name for step in steps)} failed:\n{err.decode()}")
        problems = json.loads(out.splitlines()[-1])
        if not problems:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text("[]")
        return problems

    return answer


def _alone() -> dict[str, str]:
    """Our environment without what a launcher set: TrainingArguments would join the step's own process group."""
    launched = ("RANK", "LOCAL_", "WORLD_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
    return own_modules({name: value for name, value in os.environ.items() if not name.startswith(launched)})


def main() -> None:
    """Questions on stdin, problems as the last line of stdout."""
    found = []
    for question in json.load(sys.stdin):
        stage = stages()[question["stage"]]
        assert stage.check is not None
        identity = stage.identity.model_validate(question["config"])
        execution = stage.execution.model_validate(question["execution"])
        for problem in stage.load(stage.check)(identity, execution):
            found.append((question["step"], {"field": problem.field, "message": problem.message}))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
