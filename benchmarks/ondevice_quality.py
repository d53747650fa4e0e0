"""What the on-device tools make of a real model: measures of chat, summaries, rewritings, titles and the agent.

`python -m benchmarks.ondevice_quality MODEL.gguf [--tools chat agent] [--articles valid.txt] [--threads 1] [--show]`

The commands' own defaults, but temperature 0 everywhere; the same file and machine give the same figures. No measure
needs a judge: each is a count that a person can repeat by hand.

- chat: short questions whose answer contains one of a few words; a dialogue whose answers are in its first message.
- summaries: `about`, names the subject; `R-1`, F1 of content words against a person's summary (of an article: against
  its first paragraph, which is a part of the text); `found`, share of its content words that are in the text (the rest
  is made up or said in other words); `copied`, share of runs of eight words that are the text's; `length` in words of
  the summary for each of the text.
- rewritings: `facts`, names and numbers kept; `kept`, share of the text's content words; `new`, share of the
  rewriting's words that are not the text's; `length` likewise. A copy has 100 % kept and no new words.
- titles: `about`; words; quotes or more than one line.
- agent: the final answer holds what is right; the first call is of the right tool; calls before the answer.
- `loops`: answers in which one of five runs of four words has been there before. `cut`: answers that did not end.

--articles FILE takes articles of wikitext-2 (` = Title = ` headings) instead of the eight texts for the summaries.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acorn.__main__ import parser as commands
from benchmarks.ondevice_texts import (
    DIALOGUE,
    DIALOGUE_ANSWERS,
    ENGLISH,
    FILES,
    NOW,
    QUESTIONS,
    SAMPLES,
    TASKS,
    Sample,
    Task,
)
from ondevice.cli import SUMMARY_TOKENS, TITLE_TOKENS
from ondevice.conversation import Conversation
from ondevice.llama import Llama, sampling
from ondevice.writing import SUMMARY, TITLE, TITLE_GRAMMAR, Instructions, Rewriter, Summariser, Written

TONES = ("professional", "friendly", "concise", "simple")
CONTEXT, SMALL_CONTEXT = 4096, 1024
"""Tokens: of everything, and of the summary that needs several chunks."""
ARTICLES, ARTICLE_CHARACTERS = 20, 2000
MAX_STEPS = 5
CHAT_TOKENS = 128
REWRITTEN = 4
"""Of the texts: more would take minutes."""
SMALL_WORDS = frozenset(ENGLISH.split())

Row = dict[str, float]


def main() -> None:
    arguments = _arguments()
    tools = {"chat": chat, "summarize": summaries, "rewrite": rewritings, "title": titles, "agent": agent}
    texts = read_articles(arguments.articles) if arguments.articles else list(SAMPLES)
    figures: dict[str, Any] = {"benchmark": "ondevice_quality", "model": arguments.model.name}
    show = print if arguments.show else lambda *_: None
    with Llama(arguments.model, CONTEXT, arguments.threads) as llama:
        for name in arguments.tools:
            started, cpu = time.perf_counter(), time.process_time()
            found = tools[name](llama, texts, show)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(f"{name}  ({seconds:.0f} s, {cpu:.0f} s of CPU)")
            for row, measures in found.items():
                print(f"  {row:<22}" + "  ".join(f"{key} {_shown(value)}" for key, value in measures.items()))
            figures[name] = found
    print(json.dumps(figures))


def chat(llama: Llama, _: list[Sample], show: Callable[..., None]) -> dict[str, Row]:
    """Questions of one turn, and a dialogue."""
    options = defaults("chat")
    rows = []
    for question, answers in QUESTIONS:
        reply = Conversation(llama).ask(question, CHAT_TOKENS, options, lambda _: None)
        show(f"> {question}\n{reply.text}")
        rows.append(ending(reply.text, reply.finish) | {"right": named(reply.text, answers)})
    talk, right = Conversation(llama), []
    for message, answers in zip(DIALOGUE, DIALOGUE_ANSWERS, strict=True):
        reply = talk.ask(message, CHAT_TOKENS, options, lambda _: None)
        show(f"> {message}\n{reply.text}")
        right += [{"right": named(reply.text, answers)}] if answers else []
    return {f"{len(rows)} questions": mean(rows), "dialogue": mean(right)}


def summaries(llama: Llama, texts: list[Sample], show: Callable[..., None]) -> dict[str, Row]:
    """Each text alone; then all together, with a context that holds only some of them."""
    rows = []
    for sample in texts:
        written = summarise(llama, sample.text, SUMMARY, SUMMARY_TOKENS)
        show(f"# {sample.name}\n{written.text}")
        rows.append(of_summary(written, sample))
    found = {f"{len(rows)} texts": mean(rows)}
    whole = "\n\n".join(sample.text for sample in SAMPLES)
    room, llama.context = llama.context, SMALL_CONTEXT
    written = summarise(llama, whole, SUMMARY, SUMMARY_TOKENS)
    llama.context = room
    show(f"# all, context {SMALL_CONTEXT}\n{written.text}")
    about = [named(written.text, sample.subject) for sample in SAMPLES]
    found["all in one, in chunks"] = {"subjects": sum(about), **similarity(written.text, whole), **ending_of(written)}
    return found


def rewritings(llama: Llama, _: list[Sample], show: Callable[..., None]) -> dict[str, Row]:
    found = {}
    for tone in TONES:
        rows = []
        for sample in SAMPLES[:REWRITTEN]:
            rewriter = Rewriter(llama, tone, defaults("rewrite"))
            written = rewriter.run(*rewriter.plan(sample.text), lambda _: None, lambda *_: None)
            show(f"# {sample.name}, {tone}\n{written.text}")
            rows.append(of_rewriting(written, sample))
        found[tone] = mean(rows)
    return found


def titles(llama: Llama, _: list[Sample], show: Callable[..., None]) -> dict[str, Row]:
    rows = []
    for sample in SAMPLES:
        title = summarise(llama, sample.text, TITLE, TITLE_TOKENS, {"grammar": TITLE_GRAMMAR})
        show(f"# {sample.name}: {title.text}")
        marked = float(bool(re.search(r'["*#]|\n', title.text)))
        row = {"about": named(title.text, sample.subject), "found": similarity(title.text, sample.text)["found"]}
        rows.append(row | {"words": len(words(title.text)), "marked": marked, "cut": float(title.finish == "length")})
    return {f"{len(rows)} texts": mean(rows)}


def agent(llama: Llama, _: list[Sample], show: Callable[..., None]) -> dict[str, Row]:
    """Tasks of one call, by the tool that they need."""
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="acorn-agent-") as name:
        for file, text in FILES.items():
            (Path(name) / file).write_text(text)
        for task in TASKS:
            row = solve(llama, Path(name), task, show)
            group = "files" if task.tool.endswith(("file", "files")) else task.tool
            rows.setdefault(group, []).append(row)
    rows["all"] = [row for group in list(rows.values()) for row in group]
    return {f"{len(group)} {name}": mean(group) for name, group in rows.items()}


def solve(llama: Llama, folder: Path, task: Task, show: Callable[..., None]) -> Row:
    from ondevice.agent import CALL_TOKENS
    from ondevice.smolagents import AgentFailed, LocalModel, run_agent
    from ondevice.tools import builtin_tools

    specs = [replace(spec, call=lambda zone: NOW) if spec.name == "time" else spec for spec in builtin_tools(folder)]
    model = LocalModel(llama, specs, CALL_TOKENS, defaults("agent"))
    calls: list[str] = []
    said, failed = "", 0.0
    show(f"> {task.task}")
    try:
        for step in run_agent(task.task, specs, model, MAX_STEPS):
            show(f"  {step.kind} {step.name} {step.text[:200]}")
            calls += [step.name] if step.kind == "call" else []
            said = step.text if step.kind == "answer" else said
    except AgentFailed as error:
        show(f"  failed: {error}")
        failed = 1.0
    right = all(answer in said.lower().replace(",", "") for answer in task.answers)
    first = float(calls[:1] == [task.tool])
    return {"right": float(right), "first tool": first, "calls": float(len(calls)), "no answer": failed}


def defaults(command: str) -> dict[str, Any]:
    """The samplers of a command as they are without options, but greedy."""
    needed = {"chat": [], "agent": ["-"]}.get(command, ["-"])
    return sampling(commands().parse_args([command, *needed])) | {"temperature": 0.0}


def summarise(
    llama: Llama, text: str, instructions: Instructions, most: int, last: dict[str, Any] | None = None
) -> Written:
    part = min(SUMMARY_TOKENS, llama.context // 4)
    work = Summariser(llama, instructions, part, min(most, part), defaults("summarize"), last or {})
    return work.run(*work.plan(text), lambda _: None, lambda *_: None)


def of_summary(written: Written, sample: Sample) -> Row:
    row = {"about": named(written.text, sample.subject), "R-1": overlap(written.text, sample.summary)}
    return row | similarity(written.text, sample.text) | ending_of(written)


def of_rewriting(written: Written, sample: Sample) -> Row:
    said = " ".join(words(written.text))
    facts = [" ".join(words(fact)) in said for fact in sample.facts]
    text, new = content(sample.text), content(written.text)
    kept = sum(word in set(new) for word in text) / len(text)
    fresh = sum(word not in set(text) for word in new) / max(1, len(new))
    length = len(words(written.text)) / len(words(sample.text))
    return {"facts": sum(facts) / len(facts), "kept": kept, "new": fresh, "length": length} | ending_of(written)


def similarity(summary: str, text: str) -> Row:
    said, known = content(summary), set(words(text))
    runs, given = grams(words(summary), 8), set(grams(words(text), 8))
    return {
        "found": sum(word in known for word in said) / max(1, len(said)),
        "copied": sum(run in given for run in runs) / max(1, len(runs)),
        "length": len(words(summary)) / len(words(text)),
    }


def ending_of(written: Written) -> Row:
    return ending(written.text, written.finish)


def ending(text: str, finish: str) -> Row:
    runs = grams(words(text), 4)
    again = 1 - len(set(runs)) / len(runs) if runs else 0.0
    return {"loops": float(again > 0.2), "cut": float(finish == "length")}


def named(text: str, any_of: Sequence[str]) -> float:
    """1 if one of `any_of`, in lower case, is among the words of `text`."""
    said = f" {' '.join(words(text))} "
    return float(any(f" {' '.join(words(each))} " in said for each in any_of))


def overlap(text: str, reference: str) -> float:
    """F1 of content words: ROUGE-1 without the small words, which every English text shares."""
    one, other = Counter(content(text)), Counter(content(reference))
    return 2 * (one & other).total() / max(1, one.total() + other.total())


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[.,':-][^\W_]+)*", text.lower())


def content(text: str) -> list[str]:
    return [word for word in words(text) if word not in SMALL_WORDS]


def grams(items: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(items[start : start + size]) for start in range(len(items) - size + 1)]


def mean(rows: list[Row]) -> Row:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def read_articles(path: Path) -> list[Sample]:
    """The first articles of a wikitext file whose first paragraph says something; each about 2,000 characters."""
    return list(_articles(path.read_text(encoding="utf-8")))[:ARTICLES]


def _articles(text: str) -> Iterator[Sample]:
    for block in re.split(r"(?m)^ = (?!= )", text)[1:]:
        title, _, body = block.partition(" = \n")
        lines = [_plain(line) for line in body.splitlines() if line.strip() and not line.startswith(" = ")]
        if len(lines) < 4 or len(lines[0]) < 250:
            continue
        chosen = lines[:1]
        while len(chosen) < len(lines) and len("".join(chosen)) + len(lines[len(chosen)]) <= ARTICLE_CHARACTERS:
            chosen.append(lines[len(chosen)])
        subject = tuple(word for word in words(_plain(title)) if word not in SMALL_WORDS and len(word) > 2)
        yield Sample(_plain(title), "\n\n".join(chosen), lines[0], subject, ())


def _plain(line: str) -> str:
    """A line of wikitext as people write: its tokens are set apart by spaces."""
    line = re.sub(r" @([-,.])@ ", r"\1", line).replace("<unk>", "").replace(' " ', " ")
    line = re.sub(r"\s+([,.;:!?)]|'s\b)", r"\1", line)
    return re.sub(r"\s+", " ", re.sub(r"\(\s+", "(", line)).strip()


def _shown(value: float) -> str:
    return f"{value:.2f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["chat", "summarize", "rewrite", "title", "agent"]
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--tools", nargs="+", choices=names, default=names)
    parser.add_argument("--articles", type=Path, metavar="FILE", help="wikitext, for the summaries")
    parser.add_argument("--threads", type=int, help="(default: OMP_NUM_THREADS, else all cores)")
    parser.add_argument("--show", action="store_true", help="every answer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
