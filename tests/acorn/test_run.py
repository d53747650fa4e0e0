"""Runs of a real (small) recipe against a real registry: hits, staleness, kills, interruptions."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acorn.plan import plan
from acorn.recipe import load_recipe
from acorn.resolve import MissingInput, resolve
from acorn.run import StepEvent, run_recipe
from acorn.worker import WORKERS_LOCK
from registry import Registry
from tests.acorn.test_recipe import GOOD, write


def run(
    path: Path, home: Path, overrides: list[str] | None = None, selected: list[str] | None = None
) -> list[StepEvent]:
    events: list[StepEvent] = []
    run_recipe(load_recipe(path, overrides or []), Registry(home), events.append, selected)
    return events


def kinds(events: list[StepEvent]) -> list[str]:
    return [f"{event.step} {event.kind}" for event in events if event.kind != "start"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and a registry in which it has run."""
    folder = tmp_path_factory.mktemp("built")
    path, home = write(folder, GOOD), folder / "home"
    assert kinds(run(path, home)) == ["corpus built", "tokenizer built", "tokens built"]
    return path, home


def statuses(path: Path, home: Path, overrides: list[str]) -> list[tuple[str, str]]:
    return [(row.status, row.why) for row in plan(load_recipe(path, overrides), Registry(home))]


def test_a_second_run_builds_nothing(built: tuple[Path, Path]) -> None:
    assert kinds(run(*built)) == ["corpus hit", "tokenizer hit", "tokens hit"]


def test_an_execution_field_changes_no_key(built: tuple[Path, Path]) -> None:
    assert [status for status, _ in statuses(*built, ["corpus.device=cpu"])] == ["hit"] * 3


def test_plan_names_the_field_that_changed(built: tuple[Path, Path]) -> None:
    rows = statuses(*built, ["tokenizer.vocab_size=310"])
    assert rows == [("hit", ""), ("stale", "vocab_size 300 → 310"), ("waits", "on tokenizer")]


def test_manifests_carry_lineage_versions_licences_and_ledger(built: tuple[Path, Path]) -> None:
    registry = Registry(built[1])
    artifact = registry.get("tiny/tokens")
    assert [m.stage for m in registry.lineage(artifact.key)][-1] == "tokens"
    assert {m.stage for m in registry.lineage(artifact.key)} == {"problems", "tokenizer", "tokens"}
    assert artifact.manifest.licenses == ["Apache-2.0"]
    assert artifact.manifest.ledger["seconds"] > 0 and artifact.manifest.ledger["peak_memory_bytes"] > 1e6
    assert artifact.manifest.libraries["tokenizers"] != "absent"


def test_only_one_step_needs_its_inputs_built(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(MissingInput, match="needs 'corpus', which is not built yet"):
        run(path, tmp_path / "home", selected=["tokenizer"])
    assert kinds(run(path, tmp_path / "home", selected=["corpus"])) == ["corpus built"]
    assert kinds(run(path, tmp_path / "home", selected=["tokenizer"])) == ["corpus hit", "tokenizer built"]


def test_an_edited_source_makes_the_step_stale_and_a_moved_one_does_not(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("".join(f"Once upon a time there were {n} acorns.\n\n" for n in range(200)))
    config = f"{{license: MIT, text: [{{path: {text}, document_characters: 50}}]}}"
    recipe = f"name: own\nsteps:\n  corpus:\n    stage: text\n    config: {config}\n"
    path, home = write(tmp_path, recipe), tmp_path / "home"
    assert kinds(run(path, home)) == ["corpus built"]
    moved = tmp_path / "elsewhere.txt"
    text.rename(moved)
    path = write(tmp_path, recipe.replace(str(text), str(moved)))
    assert kinds(run(path, home)) == ["corpus hit"]
    lines = tmp_path / "elsewhere.jsonl"  # read another way: not the same corpus, whatever the bytes
    lines.write_bytes(moved.read_bytes())
    assert statuses(write(tmp_path, recipe.replace(str(text), str(lines))), home, [])[0][0] == "stale"
    path = write(tmp_path, recipe.replace(str(text), str(moved)))
    moved.write_text(moved.read_text().replace("acorns", "oaks"))
    [(status, why)] = statuses(path, home, [])
    assert status == "stale" and "text" in why
    moved.unlink()
    with pytest.raises(MissingInput, match="no such file or folder"):
        run(path, home)


def start(path: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "acorn", "--home", str(home), "run", str(path), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A test run that was itself started in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def workers(home: Path) -> list[int]:
    """Processes whose command line names a job in this registry."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if "--job" in command and str(home) in command:
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds: float = 300.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
def test_a_killed_run_leaves_no_worker_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path, home = write(tmp_path, GOOD), tmp_path / "home"
    big = ["--set", "corpus.documents=400000"]
    process = start(path, home, *big)
    wait_for(lambda: workers(home))
    process.kill()
    process.wait()
    wait_for(lambda: not workers(home))
    assert Registry(home).artifacts() == [] and Registry(home).verify() == []
    assert kinds(run(path, home)) == ["corpus built", "tokenizer built", "tokens built"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_children_and_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    path, home = write(tmp_path, GOOD), tmp_path / "home"
    process = start(path, home, "--set", "corpus.documents=400000")
    wait_for(lambda: workers(home))
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code
    again = f"acorn --home {home} run {path} --set corpus.documents=400000"
    assert f"The same command goes on from here: {again}" in said
    assert workers(home) == []


def test_a_new_attempt_waits_for_a_worker_of_the_old_one_and_clears_what_it_left(tmp_path: Path) -> None:
    path, home = write(tmp_path, GOOD), tmp_path / "home"
    step = load_recipe(path).steps["corpus"]
    staging = home / "staging" / resolve(step, {}, Registry(home)).key
    (staging / "scratch").mkdir(parents=True)
    events: list[StepEvent] = []
    with (staging / "scratch" / WORKERS_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)

        def note(event: StepEvent) -> None:
            events.append(event)
            if event.kind == "waiting":
                (staging / "out" / "left-behind").write_text("by the old worker")
                fcntl.flock(lock, fcntl.LOCK_UN)

        run_recipe(load_recipe(path), Registry(home), note, ["corpus"])
    assert kinds(events) == ["corpus waiting", "corpus built"]
    assert not (Registry(home).get("tiny/corpus").path / "left-behind").exists()


def test_a_failing_step_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    path, home = write(tmp_path, GOOD.replace("vocab_size: 300", "vocab_size: 60000")), tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-m", "acorn", "--home", str(home), "run", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ended with exit code" in done.stderr
    assert [manifest.stage for manifest in Registry(home).artifacts()] == ["problems"]


def test_a_staged_command_runs_the_steps_of_its_package(tmp_path: Path) -> None:
    path, home = write(tmp_path, GOOD), tmp_path / "home"
    command = [sys.executable, "-m", "corpus", "--home", str(home), str(path)]
    done = subprocess.run([*command, "--step", "corpus"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(Registry(home).refs()) == ["tiny/corpus"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(Registry(home).refs()) == ["tiny/corpus", "tiny/tokenizer", "tiny/tokens"]
