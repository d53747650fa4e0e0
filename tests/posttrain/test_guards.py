"""What is refused before training starts, and what `acorn data show STEP --labels` prints of the rows."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoTokenizer
from transformers import DataCollatorForLanguageModeling as MaskingCollator

from acorn.__main__ import main
from acorn.stage import Job
from posttrain.config import SftConfig
from posttrain.guards import guard_chat, guard_collator, guard_swapped_template, guard_tokenizer
from posttrain.show import pieces, show_labels
from posttrain.stage import STAGES
from registry import Registry, Spec
from tests.jobs import make_job, run_here
from tests.posttrain.conftest import SFT
from tests.posttrain.world import SETTINGS, write_chat

END, NOT = 2, -100


def prepared(*rows: list[int], ids: list[int] | None = None) -> Dataset:
    """Rows of the ids 10, 2, 11, 12, 2 or `ids`, each with its labels."""
    ids = ids or [10, END, 11, 12, END]
    return Dataset.from_list([{"input_ids": ids, "labels": list(labels)} for labels in rows])


def test_a_row_without_a_trained_token_is_an_error_that_numbers_it() -> None:
    sound, empty = [NOT, NOT, 11, 12, END], [NOT] * 5
    assert guard_chat(prepared(sound), 1, END, None, 0.0).truncated == 0
    with pytest.raises(ValueError, match="row 1 has no trained token"):
        guard_chat(prepared(sound, empty), 2, END, None, 0.0)


def test_every_turn_must_train_its_end_not_the_last_one_alone() -> None:
    first_open = [10, NOT, NOT, 12, END]
    with pytest.raises(ValueError, match=r"row 0 never trains its end-of-turn token \(id 2\), or not in every turn"):
        guard_chat(prepared(first_open), 1, END, None, 0.0)
    with pytest.raises(ValueError, match="row 0 never trains its end-of-turn"):
        guard_chat(prepared([NOT, NOT, 11, 12, NOT]), 1, END, None, 0.0)


def test_a_line_break_behind_the_end_of_turn_may_be_trained_too() -> None:
    ids = [10, 11, END, 12, 13, 14, END, 12]
    sound = [NOT, 11, END, 12, NOT, 14, END, 12]
    assert guard_chat(prepared(sound, ids=ids), 1, END, None, 0.0).truncated == 0
    for open_turn in ([NOT, 11, NOT, 12, NOT, 14, END, 12], [NOT, NOT, NOT, 12, NOT, 14, END, 12]):
        with pytest.raises(ValueError, match="row 0 never trains its end-of-turn"):
            guard_chat(prepared(open_turn, ids=ids), 1, END, None, 0.0)
    packed = {"input_ids": [10, END, 12, 10, END], "labels": [NOT, END, 12, NOT, END], "seq_lengths": [2, 3]}
    with pytest.raises(ValueError, match="row 1 never trains"):  # the end of turn before it is another document's
        guard_chat(Dataset.from_list([packed]), 2, END, None, 0.0)


def test_a_row_trained_as_a_whole_needs_an_end_of_turn_somewhere() -> None:
    whole = [10, END, 11, 13]
    assert guard_chat(prepared(whole, ids=whole), 1, END, None, 0.0).rows == 1
    with pytest.raises(ValueError, match="row 0 never trains its end-of-turn"):
        guard_chat(prepared([10, 11, 12], ids=[10, 11, 12]), 1, END, None, 0.0)


def test_packed_documents_are_looked_at_one_by_one() -> None:
    ids = [10, 11, END, 12, 13]
    row = {"input_ids": ids, "labels": [NOT, 11, END, NOT, 13], "seq_lengths": [3, 2]}
    with pytest.raises(ValueError, match="row 1 never trains"):
        guard_chat(Dataset.from_list([row]), 2, END, None, 0.0)
    closed = {"input_ids": [10, 11, END, 12, END], "labels": [NOT, 11, END, 12, END], "seq_lengths": [3, 2]}
    assert guard_chat(Dataset.from_list([closed]), 2, END, None, 0.0).truncated == 0


def test_an_end_of_turn_that_the_collator_masks_as_padding_is_an_error(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = Dataset.from_list(
        [{"input_ids": ids, "labels": ids} for ids in ([10, 11, END], [10, 11, 12, 13, END])],
    )

    def masking(rows: list[Any]) -> dict[str, Any]:
        return dict(MaskingCollator(tokenizer, mlm=False)([{"input_ids": row["input_ids"]} for row in rows]))

    guard_collator(masking, rows, END, tokenizer.pad_token_id, None)
    tokenizer.pad_token = "<|im_end|>"
    with pytest.raises(ValueError, match=r"of 2 ends of turn.*trains 0.*because it is the padding token as well"):
        guard_collator(masking, rows, END, tokenizer.pad_token_id, None)


def copied(folder: Path, to: Path, template: str | None = None) -> Path:
    shutil.copytree(folder, to)
    if template is not None:
        (to / "chat_template.jinja").write_text(template)
    return to


def test_a_template_that_differs_from_the_tokenizer_artifacts_is_an_error(
    tiny_model: Path, tiny_tokenizer: Path, chat: Path, tmp_path: Path
) -> None:
    other = (tiny_tokenizer / "chat_template.jinja").read_text().replace("<|im_end|>", "<|im_end|> ", 1)
    model = copied(tiny_model, tmp_path / "model", other)
    inputs = {"model": model, "chat": chat, "tokenizer": tiny_tokenizer}
    job = make_job(SFT, tmp_path / "job", {"global_batch_size": 8, "training": SETTINGS}, {"device": "cpu"}, inputs)
    with pytest.raises(ValueError, match=r"chat template is not the tokenizer artifact's.*from character"):
        run_here(SFT, job)
    guard_tokenizer(tiny_model, tiny_tokenizer)
    (model / "chat_template.jinja").unlink()
    guard_tokenizer(model, tiny_tokenizer)  # a base model has none and takes the artifact's
    with pytest.raises(ValueError, match="no chat template; name a tokenizer artifact"):
        guard_tokenizer(model, None)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    (model / "chat_template.jinja").write_text(other)
    with pytest.raises(ValueError, match="two chat templates"):
        guard_tokenizer(model, None)


def test_a_tokenizer_with_other_ids_is_an_error(tiny_model: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    other = copied(tiny_tokenizer, tmp_path / "tokenizer")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer artifact's"):
        guard_tokenizer(tiny_model, other)


def test_a_training_template_of_the_librarys_own_must_render_the_same_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "2+2"}]}])
    guard_swapped_template(tokenizer, tokenizer.chat_template, rows, "messages")
    with pytest.raises(ValueError, match=r"row 0: .* renders other text \(from character 0"):
        guard_swapped_template(tokenizer, "{{ messages[0]['content'] }}", rows, "messages")


def test_pieces_of_text_know_whether_they_are_trained(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "é 4"}], tokenize=False)
    ids = tokenizer(text)["input_ids"]
    labels = [NOT, *ids[1:]]
    found = list(pieces(ids, labels, tokenizer))
    assert "".join(piece for piece, _, _ in found) == text
    assert found[0] == ("<|im_start|>", False, True)
    assert all(trained for _, trained, _ in found[1:])


def shown(stage: str, job: Job, rows: int = 2, **config: Any) -> tuple[bool, str]:
    out = io.StringIO()
    console = Console(file=out, color_system=None, width=500)
    kind = {one.name: one for one in STAGES}[stage]
    sound = show_labels(kind, job.config.model_copy(update=config), job.inputs, rows, console)
    return sound, out.getvalue()


def test_labels_are_shown_as_the_trainer_has_them(fine_tuned: Job, aligned: Job, chat: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    sound, text = shown("sft", fine_tuned)
    answer = json.loads((chat / "train.jsonl").read_text().splitlines()[0])["messages"][1]["content"]
    assert sound
    assert f"<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in text
    assert text.count("⟦") == 2
    sound, text = shown("dpo", aligned)
    assert sound
    assert text.count("⟦") == 4 and "rejected, " in text
    row = {"messages": [{"role": "user", "content": "2+2"}, {"role": "user", "content": "3+3"}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    job = make_job(SFT, tmp_path / "job", fine_tuned.config.model_dump(), {}, {**fine_tuned.inputs, "chat": tmp_path})
    sound, text = shown("sft", job)
    assert not sound and "no assistant tokens" in text
    torch.random.set_rng_state(state)


def test_rows_that_are_no_conversations_are_refused_with_their_line(tiny_model: Path, tmp_path: Path) -> None:
    chat = write_chat(tmp_path / "chat", rows=2)
    good = (chat / "train.jsonl").read_text()
    config = SftConfig(global_batch_size=2, training=SETTINGS).model_dump()
    for number, (line, why) in enumerate(
        (
            ("{", "line 3: no JSON"),
            ("[1]", r"line 3: '\[1\]' is no JSON object"),
            ('{"messages": "hello"}', "line 3: messages is str, not a list of messages"),
            ('{"messages": [{"content": "hello"}]}', r"line 3: messages\[0\] is no message with a role"),
            ('{"messages": [{"role": "user"}]}', r"line 3: messages\[0\] \(user\) has neither text"),
        )
    ):
        (chat / "train.jsonl").write_text(good + line + "\n")
        job = make_job(SFT, tmp_path / str(number), config, {"device": "cpu"}, {"model": tiny_model, "chat": chat})
        with pytest.raises(ValueError, match=why):
            run_here(SFT, job)


def published(registry: Registry, kind: str, folder: Path) -> None:
    """`folder` as an artifact with the tag of its kind."""
    spec = Spec(stage=kind, version=1, kind=kind, config={}, execution={}, inputs={}, sources={})
    with registry.build(spec) as build:
        shutil.copytree(folder, build.out, dirs_exist_ok=True)
        registry.tag(kind, build.publish().key)


def test_the_command_shows_what_a_recipes_step_would_train(
    tiny_model: Path, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(tmp_path / "home")
    published(registry, "model", tiny_model)
    published(registry, "chat", chat)
    recipe = tmp_path / "recipe.yaml"
    config = "{global_batch_size: 8, training: {max_length: 96}}"
    recipe.write_text(f"steps: {{sft: {{stage: sft, inputs: {{model: '@model', chat: '@chat'}}, config: {config}}}}}\n")
    show = ["--home", str(tmp_path / "home"), "data", "show", "sft", "--labels", "--recipe", str(recipe), "--n", "1"]
    assert main(show) == 0
    assert "chat, row 0: " in (shown := capsys.readouterr().out) and shown.count("<|im_end|>⟧") == 1
    assert main([*show, "--set", "sft.end_of_turn=<|pad|>"]) == 1
    assert "never trains its end-of-turn token (id 3)" in capsys.readouterr().out
    assert main([*show[:4], "chat", "--labels"]) == 1
    assert "was made by chat: what is trained of it depends on the step" in capsys.readouterr().err
