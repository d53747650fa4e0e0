"""The `test_sets` stage: what an evaluation asks beyond corpora, written down for the steps that must keep it out.

Recipes need not name it: one is added for each evaluation where a step of the recipe keeps test sets out of its rows
(`acorn.tests_kept_out`).
"""

from __future__ import annotations

import json

from acorn.stage import Job
from eval.config import TestSetsConfig
from eval.lighteval import prepare


def run(job: Job) -> dict[str, float]:
    """Write `items.jsonl`: `{"set", "text"}` of every item, `set` being its task as lighteval spells it (`gsm8k|5`).

    Raises ValueError for data that is not there or does not fit a task.
    """
    config: TestSetsConfig = job.config
    prepare()
    from eval.data import prepare_tasks

    ready = prepare_tasks(config.evaluation(), job.scratch / "lighteval")
    questions = {name: texts for one in ready.values() for name, texts in one.questions.items()}
    with (job.out / "items.jsonl").open("w", encoding="utf-8") as file:
        for name, texts in questions.items():
            for text in texts:
                file.write(json.dumps({"set": name, "text": text}, ensure_ascii=False) + "\n")
    return {f"test_sets/{name}": float(len(texts)) for name, texts in questions.items()}
