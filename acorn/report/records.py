"""Where everything came from: per step key, inputs, config and metrics; licences, source commit, library versions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from acorn.report.markup import Html, figure, join, moment, number, size, table, tag
from acorn.report.read import Made, Run

FILES_SHOWN = 40


def records(run: Run) -> Html:
    """One collapsible record a step, then what the steps have in common."""
    return join([*(_record(made) for made in run.made.values()), tag("div", *_shared(run), class_="columns")])


def _record(made: Made) -> Html:
    identity = f"step-{made.name}"
    title = [tag("b", made.name), tag("span", f"{made.step.stage.name} → {made.kind}", class_="muted")]
    if made.artifact is None:
        return tag(
            "details",
            tag("summary", *title, tag("span", "not built", class_="tagged")),
            _yaml(made.step.identity.model_dump(mode="json")),
            id=identity,
        )
    manifest = made.artifact.manifest
    stale = tag("span", "older than the recipe", class_="tagged") if made.stale else None
    head = tag("summary", *title, tag("code", manifest.key), stale)
    warning = tag("p", f"The recipe has changed since: {made.stale}.", class_="state") if made.stale else None
    body = [warning, _facts(made), tag("div", *_columns(made), class_="columns")]
    return tag("details", head, *body, id=identity)


def _facts(made: Made) -> Html:
    assert made.artifact is not None
    manifest = made.artifact.manifest
    rows = [
        ("made", moment(manifest.created)),
        ("digest", tag("code", manifest.digest)),
        ("stage version", manifest.stage_version),
    ]
    rows += [(f"input {role}", tag("code", entry.key)) for role, entry in manifest.inputs.items()]
    rows += [(f"source {field}", path) for field, path in manifest.sources.items()]
    rows += [("commit", _commit(manifest.git))] if manifest.git.commit else []
    rows += [("licences", ", ".join(manifest.licenses))] if manifest.licenses else []
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="facts")


def _columns(made: Made) -> list[Html]:
    assert made.artifact is not None
    manifest = made.artifact.manifest
    parts = [tag("div", tag("h4", "config (in the key)"), _yaml(manifest.config))]
    parts.append(tag("div", tag("h4", "execution (not in the key)"), _yaml(manifest.execution)))
    if manifest.metrics:
        rows = [[name, number(figure(float(value)))] for name, value in manifest.metrics.items()]
        parts.append(tag("div", tag("h4", "metrics"), table(["metric", tag("th", "value", class_="num")], rows)))
    files = [*manifest.files.items(), *manifest.records.items()]
    rows = [[path, number(size(entry.size))] for path, entry in files[:FILES_SHOWN]]
    rows += [[f"and {len(files) - FILES_SHOWN:,} more", number("")]] if len(files) > FILES_SHOWN else []
    parts.append(tag("div", tag("h4", "files"), table(["file", tag("th", "size", class_="num")], rows)))
    return parts


def _yaml(value: Any) -> Html:
    return tag(
        "pre", yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).strip() if value else "(nothing)"
    )


def _commit(git: Any) -> Html:
    return join([tag("code", git.commit[:12]), " with uncommitted changes" if git.dirty else None])


def _shared(run: Run) -> list[Html]:
    manifests = [made.artifact.manifest for made in run.built() if made.artifact]
    commits = Counter((m.git.commit, m.git.dirty) for m in manifests if m.git.commit)
    licences = sorted({name for m in manifests for name in m.licenses})
    lines = [
        [tag("code", str(commit)[:12]), "with uncommitted changes" if dirty else "clean", number(amount)]
        for (commit, dirty), amount in commits.items()
    ]
    parts = (
        [tag("div", tag("h4", "source of acorn"), table(["commit", "", tag("th", "steps", class_="num")], lines))]
        if lines
        else []
    )
    if licences:
        parts.append(tag("div", tag("h4", "licences of the data"), tag("p", ", ".join(licences))))
    versions: dict[str, list[str]] = {}
    for manifest in manifests:
        for name, version in manifest.libraries.items():
            if version != "absent" and version not in versions.setdefault(name, []):
                versions[name].append(version)
    rows = [[name, ", ".join(found)] for name, found in versions.items() if found]
    return [*parts, tag("div", tag("h4", "libraries"), table(["library", "version"], rows))] if rows else parts
