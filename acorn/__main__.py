"""The `acorn` command. Nothing heavy is imported before it is needed: `acorn --help` answers in under 0.3 s."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ondevice import arguments as ondevice

STAGE_COMMANDS = {
    "corpus": "corpus, tokenizer and token files",
    "pretrain": "pre-training (nanotron); with --import a nanotron config becomes a recipe",
    "synth": "synthetic data (distilabel)",
    "posttrain": "SFT, DPO, GRPO, distillation (TRL), soups and process reward models",
    "sft": "supervised fine-tuning (TRL)",
    "dpo": "preference optimisation (TRL)",
    "grpo": "reinforcement learning with rewards that a program checks (TRL)",
    "distill": "distillation from a larger model (TRL)",
    "soup": "average of models",
    "prm": "process reward model",
    "eval": "evaluation (lighteval)",
    "search": "test-time search; with --prompt a model thinks about one problem",
    "export": "GGUF, an answer through llama.cpp, a folder to hand out; of a recipe, or of a model folder",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.command in ondevice.COMMANDS:  # without the recipes: their imports would come before the first token
        from ondevice.cli import run

        return run(options)
    from acorn import commands

    handler: Callable[[argparse.Namespace], int] = getattr(commands, options.handler)
    return commands.guarded(handler, options)


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="acorn", description="From raw text to a small model on a laptop.")
    root.add_argument("--home", help="the artifact registry (default: $ACORN_HOME, else ./.acorn)")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    plan = commands.add_parser("plan", help="what would run, and why")
    _recipe(plan, "plan")
    plan.add_argument("--device", metavar="NAME[:COUNT]", help="hours and memory of pre-training on it, such as h100:8")
    plan.add_argument("--mfu", type=float, metavar="SHARE", help="of the device's best speed (default: 0.4)")

    run = commands.add_parser("run", help="bring a recipe's artifacts about")
    _recipe(run, "run")
    chosen = run.add_mutually_exclusive_group()
    chosen.add_argument("--only", metavar="STEP", action="append", help="this step alone (repeatable)")
    chosen.add_argument("--from", dest="from_step", metavar="STEP", help="this step and all that need it")

    for name, text in STAGE_COMMANDS.items():
        stage = commands.add_parser(name, help=text)
        stage_arguments(stage, without_recipe=name == "pretrain")
        if name == "search":
            _thinking(stage)
        if name == "pretrain":
            _importing(stage)
        if name == "export":
            stage.set_defaults(handler="export")

    ondevice.add_commands(commands)

    report = commands.add_parser("report", help="the run of a recipe as one self-contained HTML page")
    _recipe(report, "report")
    report.add_argument("--output", default=None, metavar="FILE", help="default: <recipe name>-report.html")

    _scaling(commands.add_parser("scale", help="train small sizes, predict the next one, train it and compare"))

    _slurm(
        commands.add_parser("slurm", help="a recipe's steps as Slurm jobs: sbatch files and a script to submit them")
    )

    _serving(commands.add_parser("serve", help="an OpenAI-compatible server for a model; needs no flags"))

    _data(commands.add_parser("data", help="leaf through rows of data, kept and rejected"))
    _artifacts(commands.add_parser("artifacts", help="look into the registry, move and remove artifacts"))
    _publishing(commands.add_parser("push", help="publish a release folder: a hub repository or any fsspec URL"))
    doctor = commands.add_parser("doctor", help="what this machine can do")
    doctor.set_defaults(handler="doctor")
    return root


def stage_arguments(target: argparse.ArgumentParser, without_recipe: bool = False) -> None:
    _recipe(target, "stage", optional=without_recipe)
    target.add_argument("--step", metavar="NAME", action="append", help="one step of the recipe (repeatable)")


def _thinking(target: argparse.ArgumentParser) -> None:
    """`acorn search REF --prompt TEXT`: defaults are those of `search.show.solve`."""
    target.set_defaults(handler="search")
    one = target.add_argument_group("one prompt", "RECIPE is then a model: a ref, a key or a folder")
    one.add_argument("--prompt", metavar="TEXT", help="solve this instead of running a recipe")
    one.add_argument("--method", default="weighted", help="weighted (default), majority, beam, dvts, rebase, ...")
    one.add_argument("--n", type=int, help="solutions worked on at once (default: 16)")
    one.add_argument("--budget", type=int, metavar="TOKENS", help="tokens generated and scored, at most")
    one.add_argument("--max-tokens", type=int, default=256, metavar="TOKENS", help="of one solution (default: 256)")
    one.add_argument("--prm", metavar="REF", help="the verifier (default: the one trained for the model)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--show", action="store_true", help="the tree as it grows")


def _importing(target: argparse.ArgumentParser) -> None:
    """`acorn pretrain --import FILE`, which needs no recipe."""
    target.set_defaults(handler="pretrain")
    one = target.add_argument_group("a nanotron config", "instead of RECIPE")
    one.add_argument("--import", dest="original", metavar="FILE", help="write it as a recipe; says what is different")
    one.add_argument("--out", metavar="FILE", help="the recipe's file (default: standard output)")


def _publishing(target: argparse.ArgumentParser) -> None:
    target.set_defaults(handler="push")
    target.add_argument("ref", help="a release: a ref, a key, or a folder with SHA256SUMS")
    target.add_argument("url", help="hf://owner/name[@revision], s3://..., gs://..., a folder")
    target.add_argument("--private", action="store_true", help="a hub repository that is made now is private")


def _scaling(target: argparse.ArgumentParser) -> None:
    _recipe(target, "scale", dial=False)
    target.add_argument("--step", metavar="NAME", help="the pretrain step, where there are several")
    target.add_argument("--depths", metavar="N,N,...", help="sizes to fit (default: the four below the next)")
    target.add_argument("--next", dest="target", type=int, metavar="N", help="depth to predict (default: the recipe's)")
    target.add_argument("--output", default=None, metavar="FILE", help="default: <recipe name>-scaling.html, and .json")


def _slurm(target: argparse.ArgumentParser) -> None:
    _recipe(target, "slurm")
    target.add_argument("--step", metavar="NAME", action="append", help="this step (repeatable; default: all)")
    target.add_argument("--nodes", type=int, metavar="N", help="for launched steps (default: their execution.nodes)")
    target.add_argument("--gpus", type=int, metavar="N", help="per node (default: one a process)")
    more = "one more option of sbatch, as --sbatch=--partition=gpu (repeatable)"
    target.add_argument("--sbatch", metavar="OPTION", action="append", default=[], help=more)
    target.add_argument("--out", metavar="FOLDER", help="default: slurm/<recipe name>")


def _serving(target: argparse.ArgumentParser) -> None:
    target.set_defaults(handler="serve")
    target.add_argument("model", metavar="REF", help="a ref or key of an artifact, a model folder, or a GGUF file")
    target.add_argument("--host", default="127.0.0.1", help="another one needs an API key (default: 127.0.0.1)")
    target.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    target.add_argument("--api-key", metavar="KEY", help="that clients must send (better: $ACORN_API_KEY)")
    target.add_argument("--verifier", metavar="REF", help="of searches (default: the one trained for the model)")
    silence = "after which a model's process that gives no sign of life is started again (default: 120)"
    target.add_argument("--silent-seconds", type=float, metavar="S", help=silence)
    fixed = target.add_argument_group("fixed choices", "what the server would choose by itself, and says")
    fixed.add_argument("--engine", choices=("torch", "llamacpp", "vllm"))
    fixed.add_argument("--device", choices=("cpu", "cuda"))
    fixed.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    for name, text in (
        ("context", "tokens of one conversation, at most"),
        ("kv-tokens", "tokens in the key-value cache, running and kept ones together"),
        ("chunk", "prompt tokens of one forward pass"),
        ("rows", "sequences that run at once"),
        ("threads", "of the model's process"),
        ("max-waiting", "requests that may wait for a row; more are answered 429"),
    ):
        fixed.add_argument(f"--{name}", type=int, metavar="N", help=text)


def _recipe(target: argparse.ArgumentParser, handler: str, optional: bool = False, dial: bool = True) -> None:
    target.add_argument("recipe", help="a recipe file (YAML)", nargs="?" if optional else None)
    target.add_argument("--set", dest="overrides", metavar="STEP.FIELD=VALUE", action="append", default=[])
    target.set_defaults(handler=handler)
    if not dial:
        return
    for name, of in (("depth", "layers"), ("flops", "compute")):
        text = f"size of a pretrain step, derived from its {of}"
        target.add_argument(f"--{name}", metavar="[STEP=]N", action="append", default=[], help=text)


def _data(target: argparse.ArgumentParser) -> None:
    target.set_defaults(handler="data")
    actions = target.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="rows of a step in the terminal, or as an HTML page")
    show.add_argument("name", metavar="STEP", help="recipe/step, another ref, a key, or a folder")
    one = show.add_mutually_exclusive_group()
    one.add_argument("--kept", action="store_true", help="only rows that were kept")
    one.add_argument("--rejected", action="store_true", help="only rows that were rejected")
    show.add_argument("--reason", metavar="WHY", action="append", default=[], help="rejected for it (repeatable)")
    show.add_argument("--grep", metavar="PATTERN", help="rows that the regular expression fits, in any case")
    show.add_argument("--n", type=int, metavar="ROWS", help="of a page (default: 10; in the pager and with --html 500)")
    show.add_argument("--page", type=int, metavar="N", help="this page (default: the first, at a terminal in a pager)")
    show.add_argument("--html", metavar="FILE", help="write a self-contained page instead")
    trained = show.add_argument_group("what is trained", "STEP is a finished sft or dpo step")
    trained.add_argument("--labels", action="store_true", help="tokens coloured by whether they are trained")
    trained.add_argument("--recipe", metavar="FILE", help="STEP is one of this recipe, which need not have run")
    trained.add_argument("--set", dest="overrides", metavar="STEP.FIELD=VALUE", action="append", default=[])


def _artifacts(target: argparse.ArgumentParser) -> None:
    actions = target.add_subparsers(dest="action", required=True, metavar="ACTION")
    target.set_defaults(handler="artifacts")
    actions.add_parser("ls", help="every artifact, newest last")
    for name, text in (
        ("show", "manifest of one artifact"),
        ("lineage", "what it was made from"),
    ):
        actions.add_parser(name, help=text).add_argument("name", help="a ref, a key, or the start of a key")
    diff = actions.add_parser("diff", help="what differs between two artifacts")
    diff.add_argument("name")
    diff.add_argument("other")
    tag = actions.add_parser("tag", help="give an artifact a name, which keeps it from gc")
    tag.add_argument("tag")
    tag.add_argument("name")
    actions.add_parser("untag", help="take a name away").add_argument("tag")
    verify = actions.add_parser("verify", help="hash artifacts again; names every damaged file")
    verify.add_argument("names", nargs="*")
    collect = actions.add_parser("gc", help="remove what no ref reaches and is older than a day")
    collect.add_argument("--min-age-hours", type=float, default=24.0)
    collect.add_argument("--dry-run", action="store_true")
    for name, text in (("push", "copy an artifact to a remote"), ("pull", "copy one from a remote, verified")):
        remote = actions.add_parser(name, help=text)
        remote.add_argument("name")
        remote.add_argument("url", help="any fsspec URL: s3://..., gs://..., hf://..., a folder")
        remote.add_argument("--lineage", action="store_true", help="its ancestors' data too, not their manifests alone")
        if name == "push":
            remote.add_argument("--force", action="store_true", help="upload also what seems to be there")


def stage_main(package: str) -> None:
    """`python -m <package> RECIPE [--step NAME]`, and `--job FILE` for the processes that a launcher starts."""
    if sys.argv[1:2] == ["--job"]:
        from pathlib import Path

        from acorn.worker import work

        work(Path(sys.argv[2]))
        return
    options = argparse.ArgumentParser(prog=f"python -m {package}", description=STAGE_COMMANDS[package])
    options.add_argument("--home", help="the artifact registry (default: $ACORN_HOME, else ./.acorn)")
    stage_arguments(options)
    options.set_defaults(command=package)
    from acorn import commands

    sys.exit(commands.guarded(commands.stage, options.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
