"""PRM verifiers: every known layout, from real folders, scored from a cache as if the whole text ran through."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

from acorn.tokenizers import copy_tokenizer
from engine.cache import KVTree
from engine.prm import TorchVerifier, VerifierSeq, load_verifier, read_head
from engine.prm_formats import PrmFormat, encode_prompt, encode_steps

QUESTIONS = ("Mia has 12 pens. She buys 7. How many pens does she have?", "Tom has 3 cups and wins 4. How many?")
SOLUTIONS = (
    ("Mia buys 7: 12+7=19", "#### 19"),
    ("Mia has 12 and buys 7, so 12+7=20", "That is 20 pens", "#### 20"),
    ("Tom wins 4: 3+4=7", "#### 7"),
)
ASKED = (0, 0, 1)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2}
OTHER_TEMPLATE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>\n\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant: ' -}}{%- endif -%}"
)


@pytest.fixture(scope="session")
def policy(tiny_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of other merges and another template, with Qwen's step token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*QUESTIONS, *(step for steps in SOLUTIONS for step in steps)] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|im_end|>", additional_special_tokens=["<extra_0>"]
    )
    fast.chat_template = OTHER_TEMPLATE
    folder = tmp_path_factory.mktemp("other")
    fast.save_pretrained(folder)
    return folder


def classifier(folder: Path, tokenizer: Path, labels: int = 1, stated: bool = True) -> Path:
    """A token-classification folder, with `prm.json` as the stage `prm` writes it if `stated`."""
    rows = len(AutoTokenizer.from_pretrained(tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(vocab_size=rows, num_labels=labels, classifier_dropout=0.0, **SIZES)
        LlamaForTokenClassification(config).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    if stated:
        PrmFormat("delimiter", "scalar", end_of_turn="<|im_end|>").save(folder, threshold=0.5)
    return folder


def qwen(folder: Path, tokenizer: Path) -> Path:
    """Qwen2.5-Math-PRM's layout: Qwen2 with a head of two layers, named in a config that points to code of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = Qwen2Config(vocab_size=512, **SIZES)
        model = Qwen2Model(config)
        head = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written |= {"architectures": ["Qwen2ForProcessRewardModel"]}
    written["auto_map"] = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "modeling_qwen2_rm.py").write_text("raise SystemExit('code from a model folder was run')\n")
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    weights |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    copy_tokenizer(tokenizer, folder)
    return folder


def policy_ids(policy: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Prompt and steps as the generator would hand them over."""
    encoded = encode_steps(policy, steps, "\n\n", policy.convert_tokens_to_ids("<|im_end|>"))
    prompt = encode_prompt(policy, [{"role": "user", "content": question}])
    return prompt, [encoded.step(index) for index in range(len(steps))]


def from_cache(verifier: TorchVerifier, policy: Any) -> list[list[float]]:
    """Scores of SOLUTIONS: opened together, forked where they share a question, extended in shrinking batches."""
    asked = [policy_ids(policy, QUESTIONS[index], steps) for index, steps in zip(ASKED, SOLUTIONS, strict=True)]
    first, last = verifier.open([asked[0][0], asked[2][0]])
    seqs = [*verifier.fork(first, 2), last]
    scores: list[list[float]] = [[], [], []]
    for depth in range(3):
        live = [row for row, (_, steps) in enumerate(asked) if depth < len(steps)]
        found = verifier.extend([seqs[row] for row in live], [asked[row][1][depth] for row in live])
        for row, score in zip(live, found, strict=True):
            scores[row].append(score)
    verifier.close([*seqs, first])
    return scores


def at_once(verifier: TorchVerifier, policy: Any) -> list[list[float]]:
    """Scores of SOLUTIONS, each read in one call, one of them behind a step that was read before; prompts in pieces."""
    asked = [policy_ids(policy, QUESTIONS[index], steps) for index, steps in zip(ASKED, SOLUTIONS, strict=True)]
    seqs = [read_in_pieces(verifier, prompt) for prompt, _ in asked]
    [ahead] = verifier.extend(seqs[:1], [asked[0][1][0]])
    found = verifier.read(seqs, [asked[0][1][1:], asked[1][1], asked[2][1]])
    verifier.close(seqs)
    return [[ahead, *found[0]], *found[1:]]


def read_in_pieces(verifier: TorchVerifier, prompt: Sequence[int]) -> VerifierSeq:
    seq = verifier.begin(prompt)
    while not verifier.go_on(seq, 7):
        pass
    return seq


Reference = Callable[[str, Sequence[str]], list[float]]


def by_last_token(folder: Path, tokenizer: Any) -> Reference:
    """A stranger's use of a token-classification folder: one forward pass over the whole text."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()

    def scores(question: str, steps: Sequence[str]) -> list[float]:
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": question}])
        encoded = encode_steps(tokenizer, steps, "\n\n", tokenizer.convert_tokens_to_ids("<|im_end|>"))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + encoded.ids])).logits[0]
        at = torch.tensor([len(prompt) + end - 1 for end in encoded.ends])
        chosen = logits[at]
        return (chosen[:, 0].sigmoid() if chosen.shape[1] == 1 else chosen.softmax(-1)[:, 1]).tolist()

    return scores


def by_step_token(folder: Path, tokenizer: Any) -> Reference:
    """As on Qwen2.5-Math-PRM's model card."""
    model = Qwen2Model.from_pretrained(folder).eval()
    head = read_head(folder)
    system = "Please reason step by step, and put your final answer within \\boxed{}."

    def scores(question: str, steps: Sequence[str]) -> list[float]:
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = head(model(input_ids=ids, use_cache=False).last_hidden_state)
        marks = ids[0] == tokenizer.convert_tokens_to_ids("<extra_0>")
        return logits[0][marks].softmax(-1)[:, 1].tolist()

    return scores


def by_answer(folder: Path, tokenizer: Any) -> Reference:
    """As RLHFlow's own script: the conversation so far, scored where the last `+` was predicted."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    candidates = [tokenizer.convert_tokens_to_ids(token) for token in "+-"]

    def scores(question: str, steps: Sequence[str]) -> list[float]:
        conversation, found = [], []
        for index, step in enumerate(steps):
            conversation.append({"role": "user", "content": f"{question} {step}" if index == 0 else step})
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                found.append(float(model(input_ids=ids).logits[0, -1, candidates].softmax(-1)[0]))
            conversation.append({"role": "assistant", "content": "+"})
        return found

    return scores


def expected(reference: Reference) -> list[list[float]]:
    return [reference(QUESTIONS[index], steps) for index, steps in zip(ASKED, SOLUTIONS, strict=True)]


def agree(found: list[list[float]], wanted: list[list[float]]) -> bool:
    assert len({round(score, 3) for row in wanted for score in row}) > 3  # a constant would agree with anything
    return all(pair[0] == pytest.approx(pair[1], abs=1e-5) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("labels", "stated"), [(1, True), (1, False), (2, False)])
def test_a_token_classification_folder_scores_from_its_cache_as_from_the_whole_text(
    labels: int, stated: bool, tiny_tokenizer: Path, policy: Any, tmp_path: Path
) -> None:
    folder = classifier(tmp_path / "prm", tiny_tokenizer, labels, stated)
    verifier = load_verifier(folder, policy_tokenizer=policy, device="cpu")
    assert agree(from_cache(verifier, policy), expected(by_last_token(folder, policy)))
    assert agree(at_once(verifier, policy), expected(by_last_token(folder, policy)))


def test_each_token_runs_through_the_model_once(tiny_tokenizer: Path, policy: Any, tmp_path: Path) -> None:
    verifier = load_verifier(classifier(tmp_path / "prm", tiny_tokenizer), policy_tokenizer=policy, device="cpu")
    from_cache(verifier, policy)
    asked = [policy_ids(policy, QUESTIONS[index], steps) for index, steps in zip(ASKED, SOLUTIONS, strict=True)]
    steps = sum(len(step) for _, steps in asked for step in steps)
    assert verifier.usage().prompt == len(asked[0][0]) + len(asked[2][0]) + steps
    again = verifier.usage()
    verifier.open([asked[0][0]] * 8)
    assert (verifier.usage() - again).prompt == len(asked[0][0])


def test_a_prompt_in_pieces_runs_once_and_its_forks_share_it(
    tiny_tokenizer: Path, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = load_verifier(classifier(tmp_path / "prm", tiny_tokenizer), policy_tokenizer=policy, device="cpu")
    passes: list[int] = []
    run = KVTree.run
    monkeypatch.setattr(
        KVTree, "run", lambda self, batch, ids, *rest: (passes.append(ids.shape[1]), run(self, batch, ids, *rest))[1]
    )
    seq = read_in_pieces(verifier, range(20, 40))
    assert passes == [7, 7, 6]
    assert verifier.usage().prompt == 20
    one, other = verifier.fork(seq, 2)
    assert verifier.extend([one, other], [[5, 6], [7]]) == pytest.approx(
        verifier.extend(verifier.open([range(20, 40)] * 2), [[5, 6], [7]]), abs=1e-6
    )
    assert one.prefix is not None and other.prefix is not None
    assert one.prefix.trunk is other.prefix.trunk and len(one.prefix.trunk) == 20
    begun = verifier.begin([5, 6])
    with pytest.raises(ValueError, match="has not run"):
        verifier.extend([begun], [[7]])
    with pytest.raises(ValueError, match="513 tokens, the verifier's context 512"):
        verifier.begin([5] * 513)


def test_a_prm_of_another_tokenizer_and_template_reads_the_same_text(other: Path, policy: Any, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "prm", other)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    verifier = load_verifier(folder, policy_tokenizer=policy, device="cpu")
    assert agree(from_cache(verifier, policy), expected(by_last_token(folder, tokenizer)))
    assert agree(at_once(verifier, policy), expected(by_last_token(folder, tokenizer)))


def test_the_layout_of_qwen_prms_scores_at_its_step_token_and_runs_no_code_of_the_folder(
    other: Path, policy: Any, tmp_path: Path
) -> None:
    folder = qwen(tmp_path / "prm", other)
    verifier = load_verifier(folder, policy_tokenizer=policy, device="cpu")
    assert verifier.form.layout == "separator"
    assert agree(from_cache(verifier, policy), expected(by_step_token(folder, AutoTokenizer.from_pretrained(folder))))
    assert agree(at_once(verifier, policy), expected(by_step_token(folder, AutoTokenizer.from_pretrained(folder))))


def test_the_layout_of_rlhflow_prms_scores_where_plus_or_minus_would_be_answered(
    tiny_model: Path, policy: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "prm"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.lm_head.weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    verifier = load_verifier(folder, policy_tokenizer=policy, device="cpu")
    assert verifier.form.layout == "turns"
    assert agree(from_cache(verifier, policy), expected(by_answer(folder, policy)))
    assert agree(at_once(verifier, policy), expected(by_answer(folder, policy)))


def test_the_ids_of_a_step_are_those_of_the_whole_text(policy: Any) -> None:
    steps = ["Mia buys 7: 12+7=19", "#### 19"]
    whole = policy("Mia buys 7: 12+7=19\n\n#### 19", add_special_tokens=False)["input_ids"]
    alone = policy("Mia buys 7: 12+7=19\n\n", add_special_tokens=False)["input_ids"]
    turn, cut = (encode_steps(policy, steps, "\n\n", 2), encode_steps(policy, steps[:1], "\n\n", 2, "step"))
    assert turn.ids == [*whole, 2]
    assert turn.step(0) == cut.ids != alone


def test_a_delimiter_that_the_tokenizer_merges_away_is_refused_with_the_tokens(policy: Any) -> None:
    with pytest.raises(ValueError, match=r"merges the end of the step delimiter ' '.*tokens \[.*Ġ"):
        encode_steps(policy, ["Mia", "buys"], " ", 2)


def test_a_prm_that_does_not_fit_is_refused_with_what_to_do(
    other: Path, tiny_tokenizer: Path, policy: Any, tmp_path: Path
) -> None:
    larger = classifier(tmp_path / "larger", other)
    copy_tokenizer(tiny_tokenizer, larger)
    with pytest.raises(ValueError, match=r"ids up to \d+, the model only \d+ embeddings: these files do not belong"):
        load_verifier(larger, policy_tokenizer=policy, device="cpu")
    unmarked = qwen(tmp_path / "unmarked", tiny_tokenizer)
    with pytest.raises(ValueError, match=r"no single token for its step token '<extra_0>'.*name the token"):
        load_verifier(unmarked, policy_tokenizer=policy, device="cpu")
    with pytest.raises(ValueError, match="of kind rlhflow: it has weights like a qwen model"):
        load_verifier(unmarked, "rlhflow", policy, device="cpu")
    bare = classifier(tmp_path / "bare", other)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template.*use a PRM trained from this generator's tokenizer"):
        load_verifier(bare, policy_tokenizer=policy, device="cpu")
    torn = classifier(tmp_path / "torn", tiny_tokenizer)
    kept = {name: tensor for name, tensor in load_file(torn / "model.safetensors").items() if "layers.1." not in name}
    save_file(kept, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for layers\.1\."):
        load_verifier(torn, policy_tokenizer=policy, device="cpu")
    merged = classifier(tmp_path / "merged", tiny_tokenizer)
    with pytest.raises(ValueError, match="merges the end of the step delimiter ' '"):
        load_verifier(merged, policy_tokenizer=policy, step_delimiter=" ", device="cpu")


def test_bad_calls_are_errors_and_leave_the_sequences_as_they_were(
    tiny_tokenizer: Path, policy: Any, tmp_path: Path
) -> None:
    verifier = load_verifier(classifier(tmp_path / "prm", tiny_tokenizer), policy_tokenizer=policy, device="cpu")
    [seq] = verifier.open([[5, 6]])
    with pytest.raises(ValueError, match="step 0 is empty"):
        verifier.extend([seq], [[]])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        verifier.extend([seq], [[100_000]])
    with pytest.raises(ValueError, match="given twice"):
        verifier.extend([seq, seq], [[7], [7]])
    with pytest.raises(ValueError, match="the context has 512"):
        verifier.extend([seq], [[7] * 511])
    score = verifier.extend([seq], [[7, 8]])
    assert score == pytest.approx(verifier.extend(verifier.open([[5, 6]]), [[7, 8]]), abs=1e-6)
    verifier.close([seq])
    with pytest.raises(ValueError, match="closed"):
        verifier.extend([seq], [[7]])
