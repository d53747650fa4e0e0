"""The model card: README.md of a release, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.history import LIBRARIES, History
from registry import Manifest


@dataclass(frozen=True)
class Facts:
    """What a card tells. `files`: type -> (file name, its entry in export.json); `scores`: results.json."""

    name: str
    license: str | None
    language: Sequence[str]
    files: Mapping[str, tuple[str, Mapping[str, Any]]]
    proof: Mapping[str, Any]
    scores: Mapping[str, Any]
    role: str | None
    """Under which the evaluation knows this very model."""
    history: History
    parameters: int


def write_card(facts: Facts) -> str:
    """README.md."""
    import yaml

    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {facts.name}",
        _summary(facts),
        _use(facts),
        _files(facts),
        _origins(facts.history),
        _training(facts.history),
        _data(facts),
        _evaluation(facts),
        _proof(facts),
        "## Checking the download\n\n```\nsha256sum -c SHA256SUMS\n```",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: Facts) -> dict[str, Any]:
    front: dict[str, Any] = {"language": list(facts.language), "library_name": "transformers"}
    front |= {"pipeline_tag": "text-generation", "tags": ["acorn", "gguf", "llama.cpp", "conversational"]}
    if facts.license:
        front["license"] = facts.license.lower()
    for name, found in (("base_model", facts.history.hub_models), ("datasets", facts.history.hub_datasets)):
        if found:
            front[name] = found
    if facts.role is not None:
        front["model-index"] = [{"name": facts.name, "results": _results(facts.scores["models"][facts.role])}]
    return front


def _results(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The hub's model-index: one entry a task."""
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": task.split("|")[0], "name": task},
            "metrics": [{"type": name, "value": metric["value"]} for name, metric in metrics.items()],
        }
        for task, metrics in scores.items()
    ]


def _summary(facts: Facts) -> str:
    tokens = sum(int(step.ledger.get("tokens", 0)) for step in facts.history.steps if step.stage == "pretrain")
    trained = f", pre-trained on {tokens:,} tokens" if tokens else ""
    return f"A language model of {facts.parameters:,} weights{trained}. Made with acorn; every figure here is measured."


def _use(facts: Facts) -> str:
    file = next(iter(facts.files.values()))[0]
    return f"""## Use

llama.cpp: `llama-cli -m {file}`. Ollama: `ollama create {facts.name} -f Modelfile`, then `ollama run {facts.name}`.
transformers, in this folder:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```"""


def _files(facts: Facts) -> str:
    rows = [
        (f"`{file}`", kind, _size(entry["bytes"]), f"{entry['bits_per_weight']:.2f}", _types(entry["tensor_types"]))
        for kind, (file, entry) in facts.files.items()
    ]
    table = _table(("file", "type", "size", "bits per weight", "tensors"), rows)
    return f"## Files\n\n{table}\n\n`model.safetensors`, `config.json` and the tokenizer's files are the model itself."


def _origins(history: History) -> str:
    told = []
    for origin in history.origins:
        general: Mapping[str, str] = origin["general"]
        of = ", ".join(general[key] for key in ("organization", "author", "url", "source.url") if general.get(key))
        told.append(
            f"The weights began as **{general.get('name', 'a model without a name')}**{f' ({of})' if of else ''}, "
            f"licence {general.get('license', 'not stated')}. They were unpacked to float32 from a GGUF file (sha256 "
            f"`{origin['sha256']}`; {_types(origin['tensor_types'])}), so this model starts from what had been rounded "
            "to those types. How it was trained before is not recorded here."
        )
    return "## Where it comes from\n\n" + "\n\n".join(told) if told else ""


def _training(history: History) -> str:
    if not history.steps:
        return ""
    rows = [
        (
            step.stage,
            LIBRARIES.get(step.stage, ""),
            *_trained(step),
            f"`{step.key[:12]}`",
        )
        for step in history.steps
        if step.kind not in ("gguf", "evaluation")
    ]
    table = _table(("step", "with", "tokens", "FLOPs", "artifact"), rows)
    return f"## How it was made\n\nIn this order:\n\n{table}\n\n{_configs(history.steps)}"


def _configs(steps: Iterable[Manifest]) -> str:
    import yaml

    text = "".join(
        f"\n# {step.stage} ({step.key[:12]})\n{yaml.safe_dump(step.config, sort_keys=True, allow_unicode=True)}"
        for step in steps
        if step.kind not in ("gguf", "evaluation")
    )
    return f"<details>\n<summary>The configuration of each step</summary>\n\n```yaml{text}```\n\n</details>"


def _data(facts: Facts) -> str:
    known = ", ".join(facts.history.licenses) or "not recorded"
    sets = f" Data sets: {', '.join(facts.history.hub_datasets)}." if facts.history.hub_datasets else ""
    weights = facts.license or "not stated"
    return f"## Licences\n\nData that it was trained on: {known}.{sets} The weights: {weights}."


def _evaluation(facts: Facts) -> str:
    models: Mapping[str, Any] = facts.scores.get("models", {})
    rows = [
        (f"**{role}**" if role == facts.role else role, task, name, _score(metric), str(metric.get("n", "")))
        for role, tasks in models.items()
        for task, metrics in tasks.items()
        for name, metric in metrics.items()
    ]
    if not rows:
        return ""
    this = f" This model is **{facts.role}**." if facts.role else ""
    return f"## Evaluation\n\n{_table(('model', 'task', 'metric', 'value', 'samples'), rows)}\n\nWith lighteval.{this}"


def _score(metric: Mapping[str, Any]) -> str:
    error = metric.get("stderr")
    return f"{metric['value']:.4g}" + (f" ± {error:.2g}" if error else "")


def _proof(facts: Facts) -> str:
    rows = []
    for kind, found in facts.proof["types"].items():
        greedy = found["greedy"]
        rows.append(
            (
                kind, f"{found['kl']:.2g}", f"{found['kl_worst']:.2g}", f"{found['top1']:.1%}",
                f"{found['perplexity_delta']:+.3g}", f"{found['logit_difference']:.2g}",
                f"{greedy['equal']} of {greedy['prompts']}",
            )
        )  # fmt: skip
    head = ("type", "mean KL (nats)", "worst KL", "same top token", "perplexity", "logits within", "greedy equal")
    tokens, hostile = facts.proof["tokenizer"], facts.proof["adversary"]
    return f"""## Proof of parity

Each file was compared, through llama.cpp, with this model in fp32 under transformers (`parity.json`):

{_table(head, rows)}

{tokens["strings"]:,} strings made to split tokenizers apart give equal token ids over its own vocabulary, and \
{hostile["strings"]:,} strings and {hostile["code_points"]:,} code points over an adversarial one; \
{facts.proof["template"]["conversations"]} conversations are rendered alike."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _types(histogram: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in histogram.items())


def _trained(step: Manifest) -> tuple[str, str]:
    """Tokens and FLOPs, of a training alone: what others count may differ between a run and one that was resumed."""
    tokens, flops = (float(step.ledger.get(name, 0)) if step.kind == "model" else 0 for name in ("tokens", "flops"))
    return f"{tokens:,.0f}" if tokens else "", f"{flops:.3g}" if flops else ""


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
