"""datatrove through acorn: executors by config, resumption, and each compatibility note with what shows its need."""

from __future__ import annotations

import inspect
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.decont import NGramsDecontIndexer
from datatrove.pipeline.dedup import MinhashDedupCluster
from datatrove.utils.word_tokenizers import load_word_tokenizer

from corpus.check import check_decontaminate, check_dedup, check_filter
from corpus.config import DecontaminateIdentity, DedupIdentity, FilterIdentity, PipelineExecution
from corpus.datatrove.execute import build, execute
from corpus.datatrove.words import PunctuatedWords
from corpus.stage import FILTER
from tests.corpus.test_sifting import corpus, files, good, make, removed

SLURM = {"executor": "slurm", "options": {"time": "01:00:00", "partition": "cpu"}}
ROOT = Path(__file__).parents[2]


def execution(**fields: Any) -> PipelineExecution:
    return PipelineExecution.model_validate(fields)


def faults(check: Any, identity: Any, **fields: Any) -> dict[str, str]:
    return {problem.field: problem.message for problem in check(identity, execution(**fields))}


class Mark:
    """A step that leaves a file for each task it runs, and stops at task `bad` once `after` are there."""

    def __init__(self, folder: Path, bad: int = -1, after: Sequence[Path] = ()) -> None:
        self.folder, self.bad, self.after = str(folder), bad, after

    def __call__(self, data: Any, rank: int, world_size: int) -> list[Any]:
        if rank == self.bad:
            wait_for(lambda: all(path.exists() for path in self.after))
            raise OSError(f"task {rank} of {world_size}")
        with (Path(self.folder) / str(rank)).open("a") as file:
            file.write("x")
        return []


def test_a_recipe_asks_datatrove_about_filters_settings_and_executors_before_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good_one = FilterIdentity()
    assert faults(check_filter, good_one) == faults(check_filter, good_one, **SLURM) == {}
    wrong = [
        {"type": "GopherQuality"},
        {"type": "GopherQualityFilter", "min_doc_word": 9},
        {"type": "C4QualityFilter", "language": "en"},
    ]
    found = faults(
        check_filter, FilterIdentity(filters=wrong, language="xyz"), options={"skip_completd": 1, "workers": 2}
    )
    assert "'GopherQualityFilter'" in found["filters.0.type"]
    assert "did you mean 'min_doc_words'" in found["filters.1.min_doc_word"]
    assert "the step's `language`" in found["filters.2.language"]
    assert (
        "acorn sets it" in found["execution.options.workers"]
        and "no 'skip_completd'" in found["execution.options.skip_completd"]
    )
    assert "'xyz'" in found["language"]
    minhash = {"ngrams": 5, "num_buckets": 0, "norm_config": {"lower": True}, "hash_config": {"precision": 16}}
    found = faults(check_dedup, DedupIdentity(minhash=minhash), executor="slurm", options={"time": "1:00"})
    assert "did you mean 'n_grams'" in found["minhash.ngrams"] and "1 or more" in found["minhash.num_buckets"]
    assert (
        "lowercase" in found["minhash.norm_config.lower"]
        and "16 is none of 32, 64" in found["minhash.hash_config.precision"]
    )
    assert "needs partition" in found["execution.options"]
    lowercase = DecontaminateIdentity(norm_config={"lowercase": "yes"})
    monkeypatch.setattr("corpus.check.find_spec", lambda name: None)
    found = faults(check_decontaminate, lowercase, executor="ray")
    assert "'yes' is no bool" in found["norm_config.lowercase"]
    assert "pip install 'ray[default]'" in found["execution.executor"]
    monkeypatch.setattr("corpus.check.find_spec", lambda name: object())
    assert "execution.executor" not in faults(check_decontaminate, lowercase, executor="ray")


def test_execution_fields_reach_the_executors_under_datatroves_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = build("x", [], 6, execution(workers=4), tmp_path)
    assert isinstance(local, LocalPipelineExecutor)
    assert (local.tasks, local.workers, local.logging_dir.path) == (6, 4, str(tmp_path))
    ray = build(
        "x", [], 6, execution(executor="ray", workers=4, options={"cpus_per_task": 2, "mem_per_cpu_gb": 3}), tmp_path
    )
    assert isinstance(ray, RayPipelineExecutor)
    assert (ray.tasks, ray.workers, ray.cpus_per_task, ray.mem_per_cpu_gb) == (6, 4, 2, 3)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs sbatch on PATH"):
        build("x", [], 6, execution(**SLURM), tmp_path)
    cluster(tmp_path / "bin", monkeypatch)
    slurm = build("x", [], 6, execution(workers=4, **SLURM), tmp_path)
    assert isinstance(slurm, SlurmPipelineExecutor)
    assert (slurm.tasks, slurm.workers, slurm.time, slurm.partition) == (6, 4, "01:00:00", "cpu")
    script = slurm.get_launch_file_contents(slurm.get_sbatch_args(6), "work")
    assert "#SBATCH --array=0-5%4" in script and f"source {sys.prefix}/bin/activate" in script
    for kind in (LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor):
        assert {"pipeline", "tasks", "workers", "logging_dir"} <= set(inspect.signature(kind.__init__).parameters)


def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch, squeue and scontrol as small scripts: sbatch runs the tasks of an array one after the other, at once."""
    folder.mkdir()
    python = f"#!{sys.executable}\nimport os, re, subprocess, sys\n"
    sbatch = """
script = open(sys.argv[-1]).read()
if "launch_pickled_pipeline" in script:
    last = int(re.search(r"--array=0-(\\d+)", script)[1])
    for task in range(last + 1):
        more = {"SLURM_ARRAY_TASK_ID": str(task), "RUN_OFFSET": "0", "SLURM_NODELIST": "here"}
        subprocess.run(["bash", sys.argv[-1]], env=os.environ | more, stdout=sys.stderr)
print("Submitted batch job 7")
"""
    for name, body in (("sbatch", sbatch), ("squeue", ""), ("scancel", ""), ("scontrol", "print('here')")):
        (folder / name).write_text(python + body)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.prefix) / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_slurm_tasks_run_from_the_pickled_pipeline_and_the_step_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(tmp_path / "bin", monkeypatch)
    before = corpus(tmp_path / "in", [good(number) for number in range(40)] + ["short"])
    local = make(FILTER, tmp_path / "local", {"corpus": before})
    options = {**SLURM["options"], "with_srun": False}  # type: ignore[dict-item]
    settings = {"executor": "slurm", "tasks": 2, "poll_seconds": 0.1, "options": options}
    slurm = make(FILTER, tmp_path / "slurm", {"corpus": before}, settings)
    assert files(slurm) == files(local) and removed(slurm)
    (tmp_path / "marks").mkdir()
    failing = execution(**settings)
    with pytest.raises(RuntimeError, match=r"1 of 1 tasks did not finish, first 0; see .*logs"):
        execute("marks", [Mark(tmp_path / "marks", bad=0)], 1, failing, tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_task_is_raised_and_the_next_attempt_runs_what_is_left(tmp_path: Path, workers: int) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    before = [tmp_path / "work-4" / "completions" / f"{rank:05d}" for rank in ((0, 1) if workers == 1 else (0, 1, 3))]
    with pytest.raises(OSError, match="task 2 of 4"):
        execute("work", [Mark(marks, 2, before)], 4, execution(workers=workers), tmp_path)
    for _ in range(2):
        execute("work", [Mark(marks)], 4, execution(workers=workers), tmp_path)
    ran = {path.name: path.read_text() for path in marks.iterdir()}
    assert ran == dict.fromkeys("0123", "x"), "a finished task ran again"


def test_a_worker_that_is_killed_is_an_error_and_the_others_work_is_kept(tmp_path: Path) -> None:
    def killed(data: Any, rank: int, world_size: int) -> list[Any]:
        if rank == 1:
            wait_for(lambda: (tmp_path / "work-2" / "completions" / "00000").exists())
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    with pytest.raises(RuntimeError, match=r"killed by SIGKILL.*set execution.workers lower"):
        execute("work", [killed], 2, execution(workers=2), tmp_path)
    assert (tmp_path / "work-2" / "completions" / "00000").exists()


def test_an_array_that_a_killed_attempt_left_in_the_queue_is_waited_for_and_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm answers: running, then not at all, then running while the tasks end."""
    cluster(tmp_path / "bin", monkeypatch)
    work = tmp_path / "work-2"
    (work / "completions").mkdir(parents=True)
    (work / "slurm_jobs").write_text("41\n")
    squeue = f"""#!{sys.executable}
import pathlib, sys
work = pathlib.Path({str(work)!r})
asked = work / "asked"
asked.write_text(asked.read_text() + "x" if asked.exists() else "x")
assert sys.argv[-1] == "41"
if len(asked.read_text()) == 2:
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
if len(asked.read_text()) == 3:
    for task in range(2):
        (work / "completions" / f"{{task:05d}}").touch()
print("41_0 RUNNING")
"""
    (tmp_path / "bin" / "squeue").write_text(squeue)
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\nexit 9\n")
    execute("work", [Mark(tmp_path)], 2, execution(poll_seconds=0.01, **SLURM), tmp_path)
    assert (work / "asked").read_text() == "xxx"
    assert "Unable to contact" in capsys.readouterr().err


def test_arrays_are_noted_as_they_are_submitted_and_cancelled_when_the_step_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(tmp_path / "bin", monkeypatch)
    sbatch = f"#!/bin/sh\necho x >> {tmp_path}/submitted\necho Submitted batch job 4$(wc -l < {tmp_path}/submitted)\n"
    (tmp_path / "bin" / "sbatch").write_text(sbatch)
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/sh\nkill -TERM {os.getpid()}\necho running\n")
    (tmp_path / "bin" / "scancel").write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/cancelled\n")
    options = {**SLURM["options"], "max_array_size": 2}  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        execute("work", [Mark(tmp_path)], 3, execution(executor="slurm", options=options), tmp_path)
    assert (tmp_path / "cancelled").read_text().split() == ["41", "42"]
    (tmp_path / "bin" / "squeue").write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2\nexit 1\n"
    )
    settings = execution(executor="slurm", options=options, poll_seconds=0.01)
    with pytest.raises(RuntimeError, match="3 of 3 tasks did not finish"):
        execute("work", [Mark(tmp_path)], 3, settings, tmp_path)
    assert (tmp_path / "work-3" / "slurm_jobs").read_text().split() == ["43", "44"]


def test_workers_die_with_the_step_and_no_process_is_left(tmp_path: Path) -> None:
    """Upstream's manager process would stay, and hold the lock that the next attempt waits for."""
    script = f"""
import os, signal, sys, time
from pathlib import Path
from corpus.config import PipelineExecution
from corpus.datatrove.execute import execute
def hang(data, rank, world_size):
    (Path({str(tmp_path)!r}) / str(os.getpid())).touch()
    time.sleep(600)
execute("work", [hang], 2, PipelineExecution(workers=2), Path({str(tmp_path / "scratch")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    pids = lambda: [int(path.name) for path in tmp_path.glob("[0-9]*")]  # noqa: E731
    wait_for(lambda: len(pids()) == 2)
    session = process.pid
    process.kill()
    process.wait()
    wait_for(lambda: not [pid for pid in all_pids() if session_of(pid) == session])


def wait_for(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for five minutes")


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def test_words_need_no_download_where_datatroves_own_for_english_are_not_installed() -> None:
    text = "I don't think it's 1,000.50 dollars... \"Really?\" Yes. (Well-known!)\nSix"
    words = PunctuatedWords()
    assert words.word_tokenize(text)[:7] == ["I", "do", "n't", "think", "it", "'s", "1,000.50"]
    assert words.sent_tokenize(text) == [
        "I don't think it's 1,000.50 dollars...",
        '"Really?"',
        "Yes.",
        "(Well-known!)",
        "Six",
    ]
    with pytest.raises(ImportError, match="spacy"):  # once this fails, ask whether the words here are still needed
        load_word_tokenizer("en").word_tokenize("one")


def test_upstream_still_keeps_the_root_of_a_cluster_and_not_its_first_document(tmp_path: Path) -> None:
    """Document 3 gathers 4 and 5 first, then 0 joins: datatrove keeps 3. Needed: `keep_first`."""
    from corpus.datatrove.minhash import keep_first, minhash_config

    pairs = [(3, 4), (3, 5), (0, 3)]
    (tmp_path / "in").mkdir()
    data = b"".join(number.to_bytes(4, "little") for a, b in pairs for number in (0, a, 0, b))
    (tmp_path / "in" / "00000_00.dups").write_bytes(data)
    step = MinhashDedupCluster(
        str(tmp_path / "in"), str(tmp_path / "out"), config=minhash_config({"num_buckets": 1}), save_cluster_id=True
    )
    step.run()
    remove = tmp_path / "out" / "000000.remove"
    numbers = lambda: [int.from_bytes(remove.read_bytes()[at : at + 4], "little") for at in range(0, 12, 4)]  # noqa: E731
    assert numbers() == [0, 4, 5]
    keep_first(tmp_path / "out")
    assert numbers() == [3, 4, 5]


def test_upstreams_index_still_needs_an_argument_that_lightevals_registry_no_longer_has() -> None:
    """By their sources: the import of lighteval takes longer than all other tests of this file."""
    assert "Registry(cache_dir=" in inspect.getsource(NGramsDecontIndexer.run)
    lighteval = find_spec("lighteval")
    assert lighteval is not None and lighteval.submodule_search_locations
    registry = Path(lighteval.submodule_search_locations[0]) / "tasks" / "registry.py"
    assert "class Registry" in registry.read_text() and "cache_dir" not in registry.read_text()


def test_c4_counts_lines_in_the_stats_that_acorn_reads(tmp_path: Path) -> None:
    out = make(
        FILTER, tmp_path, {"corpus": corpus(tmp_path / "in", [good(1)] * 2 + [f"{good(2)}\nof javascript here."])}
    )
    assert json.loads((out / "stats.json").read_text())["lines_cut"] == {"javascript": 1}
