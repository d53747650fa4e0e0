"""Stage `verified`: several solutions of each problem, of which the right ones are kept, one for each way.

Right is what execution says: every equation and the final number, the value of the result (math-verify), or the tests
of a program in a sandbox. Verdicts are committed with the shard, so a program that was near its limits is not judged
twice. A wrong way to a right result passes: only `equations` looks at what is between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from acorn.answers import Answers, answer_of, reference_of
from acorn.stage import Job
from synth.curate import load_problems
from synth.making import Task, make, provenance, readable
from synth.making_config import VerifiedConfig
from synth.results import code_of, path_of, path_of_code
from synth.sandbox import run_all
from synth.shards import Row, read_jsonl
from synth.verify import reason_to_reject

_COLUMNS = {"equations": ("question", "answer"), "math": ("question", "answer"), "code": ("question", "tests")}


def run(job: Job) -> dict[str, float]:
    """Make the rows. Raises FileNotFoundError without problems, ValueError for a row of `tasks` that is none, and what
    `synth.making.make` raises."""
    config: VerifiedConfig = job.config

    def ask(shard: Sequence[Row], llm: Any) -> list[Any]:
        from synth.distilabel import generate

        answers = [dict(row) for row in generate(shard, llm, config.num_generations, job.scratch, job.execution.ray)]
        tasks = {prompt["id"]: prompt["task"] for prompt in shard}
        return judge(answers, tasks, config)

    def rows_of(prompt: Row, answers: list[Row]) -> list[Row]:
        return _rows(job, prompt, answers)

    return make(job, Task(_prompts(job, config), config.num_generations, ask, rows_of))


def judge(answers: list[Row], tasks: dict[str, Row], config: VerifiedConfig) -> list[Row]:
    """The answers with their `verdict`: None where right, else the reason."""
    if config.check != "code":
        with Answers() as answered:
            return [row | {"verdict": _verdict(row, tasks[row["id"]], config, answered.same)} for row in answers]
    reasons: list[str | None] = [readable(row) for row in answers]
    codes = [None if reason else code_of(row["text"]) for row, reason in zip(answers, reasons, strict=True)]
    run = [index for index, code in enumerate(codes) if code is not None]
    programs = [(str(codes[index]), str(tasks[answers[index]["id"]]["tests"])) for index in run]
    verdicts = dict(zip(run, run_all(programs, config.sandbox), strict=True))
    judged = []
    for index, (row, reason) in enumerate(zip(answers, reasons, strict=True)):
        found = verdicts[index].reason if index in verdicts else reason or "no_code"
        judged.append(row | {"verdict": found})
    return judged


def _verdict(answer: Row, task: Row, config: VerifiedConfig, same: Callable[[str, str], bool]) -> str | None:
    if reason := readable(answer):
        return reason
    text, gold = str(answer["text"]), str(task["answer"])
    if config.check == "equations":
        return reason_to_reject(text, gold, answer["finished"])
    result = answer_of(text)
    if result is None:
        return "no_answer"
    return None if same(reference_of(gold), result) else "wrong_answer"


def _prompts(job: Job, config: VerifiedConfig) -> list[Row]:
    tasks = _tasks(job, config)
    Random(f"verified:{config.seed}").shuffle(tasks)
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    return [
        {
            "id": f"verified-{task['id']}",
            "messages": [*system, {"role": "user", "content": task["question"]}],
            "task": task,
        }
        for task in tasks[: config.problems]
    ]


def _tasks(job: Job, config: VerifiedConfig) -> list[Row]:
    if config.tasks is not None:
        path = Path(config.tasks).expanduser()
        rows = read_jsonl(path)
        for number, row in enumerate(rows):
            if missing := [name for name in _COLUMNS[config.check] if not isinstance(row.get(name), str)]:
                raise ValueError(
                    f"{path}:{number + 1}: `{missing[0]}` is missing or no text; `{config.check}` needs it"
                )
        return [{"id": f"{number:06d}", **row} for number, row in enumerate(rows)]
    if "corpus" not in job.inputs:
        raise FileNotFoundError("there are no problems: name a file under `tasks`, or a `corpus` input")
    return [dict(row) for row in load_problems(job.inputs["corpus"], "train")]


def _rows(job: Job, prompt: Row, answers: list[Row]) -> list[Row]:
    config: VerifiedConfig = job.config
    question = [turn for turn in prompt["messages"] if turn["role"] != "system"]
    rows: list[Row] = []
    ways: set[str] = set()
    for number, answer in enumerate(answers):
        text = (answer["text"] or "").strip()
        row: Row = {
            "id": f"{prompt['id']}-{number}",
            "messages": [*question, {"role": "assistant", "content": text}],
            "source": f"verified/{config.check}",
            "level": int(prompt["task"].get("level", 0)),
            **provenance(job, str(prompt["task"]["id"])),
        }
        reason = answer["verdict"]
        if reason is None:
            way = path_of_code(code_of(text) or "") if config.check == "code" else path_of(text)
            reason = "same_path" if way in ways else "over_limit" if len(ways) >= config.keep_per_problem else None
            ways |= {way} if reason is None else set()
        rows.append(row if reason is None else row | {"reason": reason})
    return rows
