"""A verifier on torch: a process reward model that keeps its own key-value cache and runs only what is new.

`load_verifier` takes our own `prm` artifacts, token-classification folders, and the layouts of the well-known models
(`engine.prm_formats`). Code from a model folder is never run: the backbone is transformers' own, and a head that needs
code of its own (Qwen2.5-Math-PRM's two layers) is read as tensors into a small module here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.cache import CHUNK, KVTree
from engine.interface import Usage
from engine.load import load_model, load_tree, pick_device
from engine.prefix import Prefix
from engine.prm_formats import PrmFormat, encode_steps, recognise, single_id, tensor_shapes
from engine.prm_likelihood import step_features, unembedding
from engine.prm_text import Delimited, PassThrough, Rewriter, Separated, Turns, Writer, same_ids
from engine.rules import check_ids

Kind = Literal["auto", "token_classification", "qwen", "rlhflow"]
Score = Callable[[Tensor, Tensor | None], Tensor]
"""(output of the model at scored tokens (B, width), likelihood features (B, 2) if asked for) -> probabilities (B,)."""


@dataclass(eq=False)
class VerifierSeq:
    """A handle; only `ids` is for others to read."""

    prompt: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...] = ()
    """Steps so far, in the generator's ids."""
    ids: list[int] = field(default_factory=list)
    """What the model has run through, in its own ids."""
    prefix: Prefix | None = None
    output: Tensor | None = None
    """Of the model at the last of `ids`, (width,): it predicts the next step's first token."""
    open: bool = True
    unread: list[int] = field(default_factory=list)
    """What of the prompt, in the model's own ids, has not run yet (`begin`)."""


class TorchVerifier:
    """`engine.interface.Verifier` over a `KVTree`. Not for several threads."""

    def __init__(
        self,
        tree: KVTree,
        score: Score,
        writer: Writer,
        form: PrmFormat,
        vocab: int,
        unembedding_VH: Tensor | None = None,
    ) -> None:
        self._tree, self._score, self._writer, self._vocab = tree, score, writer, vocab
        self._unembedding = unembedding_VH
        self.form = form
        self._tokens = 0

    @property
    def context(self) -> int:
        """Largest number of positions of a sequence, in the model's own tokens."""
        return self._tree.context

    def open(self, prompts: Sequence[Sequence[int]]) -> list[VerifierSeq]:
        """Equal prompts of one call run through the model once."""
        if not prompts:
            return []
        seqs = [VerifierSeq(tuple(prompt)) for prompt in prompts]
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f"prompt {index} is empty; give it at least one token")
        written = {prompt: self._writer.ids(prompt, ()) for prompt in dict.fromkeys(seq.prompt for seq in seqs)}
        fed = {prompt: VerifierSeq(prompt) for prompt in written}
        self._feed(list(fed.values()), list(written.values()), [[] for _ in fed])
        return [self._continue(fed[seq.prompt]) for seq in seqs]

    def begin(self, prompt: Sequence[int]) -> VerifierSeq:
        """`open` for one prompt, of which nothing has run yet: call `go_on` until it says that all has.

        Raises ValueError for an empty prompt, and for a text over the context.
        """
        if not len(prompt):
            raise ValueError("the prompt is empty; give it at least one token")
        unread = self._writer.ids(prompt, ())
        if len(unread) > self.context:
            raise ValueError(f"the prompt has {len(unread)} tokens, the verifier's context {self.context}; cut it")
        return VerifierSeq(tuple(prompt), unread=unread)

    def go_on(self, seq: VerifierSeq, tokens: int) -> bool:
        """Run `tokens` more of the prompt of a sequence that was begun; whether all of it has run."""
        part, rest = seq.unread[:tokens], seq.unread[tokens:]
        self._feed([seq], [seq.ids + part], [[]])
        seq.unread = rest
        if not rest and seq.prefix is not None:
            seq.prefix = seq.prefix.as_trunk()  # forks then share it
        return not rest

    def fork(self, seq: VerifierSeq, count: int) -> list[VerifierSeq]:
        """Costs nothing: the cache of a prefix is shared."""
        _check_open([seq])
        return [self._continue(seq) for _ in range(count)]

    def extend(self, seqs: Sequence[VerifierSeq], steps: Sequence[Sequence[int]]) -> list[float]:
        """Append a step to each and score it; all in as few forward passes as memory allows.

        Raises ValueError for an empty step, a closed sequence or one given twice, and a text over the context. After
        an error the sequences are as before.
        """
        return [scores[0] for scores in self.read(seqs, [[step] for step in steps])]

    def read(self, seqs: Sequence[VerifierSeq], paths: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Append steps to each and score every one. Raises ValueError like `extend`.

        A model that reads the generator's ids needs no more passes for it than for one step. One that reads a text
        written anew takes a pass for each: what stands behind a step may change its tokens.
        """
        _check_open(seqs)
        for index, path in enumerate(paths):
            if not path or not all(map(len, path)):
                raise ValueError(f"step {index} is empty; there is nothing to score, leave the sequence out")
        if isinstance(self._writer, PassThrough):
            return self._append(seqs, paths)
        scores: list[list[float]] = [[] for _ in seqs]
        for depth in range(max(map(len, paths), default=0)):
            rows = [row for row, path in enumerate(paths) if depth < len(path)]
            found = self._append([seqs[row] for row in rows], [[paths[row][depth]] for row in rows])
            for row, [score] in zip(rows, found, strict=True):
                scores[row].append(score)
        return scores

    def _append(self, seqs: Sequence[VerifierSeq], paths: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        after = [(*seq.steps, *map(tuple, path)) for seq, path in zip(seqs, paths, strict=True)]
        if not after:
            return []
        if isinstance(self._writer, PassThrough):
            written = [[*seq.ids, *chain.from_iterable(path)] for seq, path in zip(seqs, paths, strict=True)]
        else:
            written = [self._writer.ids(seq.prompt, steps) for seq, steps in zip(seqs, after, strict=True)]
        scores = iter(self._score(*self._feed(seqs, written, [list(map(len, path)) for path in paths])).tolist())
        for seq, steps in zip(seqs, after, strict=True):
            seq.steps = steps
        return [[next(scores) for _ in path] for path in paths]

    def close(self, seqs: Sequence[VerifierSeq]) -> None:
        _check_open(seqs)
        for seq in seqs:
            seq.open, seq.prefix, seq.output = False, None, None

    def usage(self) -> Usage:
        return Usage(prompt=self._tokens)

    def _continue(self, seq: VerifierSeq) -> VerifierSeq:
        return VerifierSeq(seq.prompt, seq.steps, list(seq.ids), seq.prefix, seq.output)

    def _feed(
        self, seqs: Sequence[VerifierSeq], written: list[list[int]], steps: list[list[int]]
    ) -> tuple[Tensor, Tensor | None]:
        """Run what of `written` each sequence lacks; `steps` has the lengths of the steps that it ends with.

        Returns the output at the last token of each step (N, width), in order, and the features of each (N, 2) where
        the format asks for them.
        """
        starts, new = [], []
        for index, (seq, ids) in enumerate(zip(seqs, written, strict=True)):
            check_ids(ids, self._vocab, f"sequence {index}")
            # A text may tokenise differently behind a prompt than was guessed; then all of it runs again.
            kept = seq.prefix is not None and len(ids) > len(seq.ids) and ids[: len(seq.ids)] == seq.ids
            starts.append(seq.prefix if kept else None)
            new.append(ids[len(seq.ids) :] if kept else ids)
        whole = self._unembedding is not None and any(steps)
        last = max(map(len, new)) if whole else max(1 + sum(lengths[1:]) for lengths in steps)
        output_BTW, prefixes = self._tree.extend(starts, new, last=last)
        self._tokens += sum(map(len, new))
        features = self._features(seqs, starts, new, output_BTW, steps) if whole else None
        for seq, ids, prefix, output_TW in zip(seqs, written, prefixes, output_BTW, strict=True):
            seq.ids, seq.prefix = ids, prefix
            seq.output = output_TW[-1].clone() if self._unembedding is not None else None
        rows = [row for row, lengths in enumerate(steps) for _ in lengths]
        ends = [-1 - sum(lengths[step + 1 :]) for lengths in steps for step in range(len(lengths))]
        return output_BTW[rows, ends], features

    @torch.inference_mode()
    def _features(
        self,
        seqs: Sequence[VerifierSeq],
        starts: list[Prefix | None],
        new: list[list[int]],
        output_BTW: Tensor,
        steps: list[list[int]],
    ) -> Tensor | None:
        """Outputs are aligned at the right; in front comes the one before the new tokens. (N, 2)"""
        if self._unembedding is None:
            return None
        rows, width = len(new), output_BTW.shape[1] + 1
        hidden_BTW = torch.cat((torch.zeros_like(output_BTW[:, :1]), output_BTW), 1)
        ids_BT = torch.zeros(rows, width, dtype=torch.long)
        steps_BT = torch.full((rows, width), -1)
        for row, (seq, start, ids, lengths) in enumerate(zip(seqs, starts, new, steps, strict=True)):
            ids_BT[row, width - len(ids) :] = torch.tensor(ids)
            # Run from the start, the step begins where the text first differs from what was read before.
            begin = 0 if start is not None else max(1, _common(seq.ids, ids))
            numbers_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            # Of several steps the ids are the generator's; one alone may have been written anew, longer or shorter.
            steps_BT[row, width - len(ids) + begin :] = numbers_T if len(lengths) > 1 else 0
            if start is not None and seq.output is not None:
                hidden_BTW[row, width - len(ids) - 1] = seq.output
        device = output_BTW.device
        features_BS2 = step_features(hidden_BTW, self._unembedding, ids_BT.to(device), steps_BT.to(device))
        return torch.cat([features_BS2[row, : len(lengths)] for row, lengths in enumerate(steps)])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def load_verifier(
    folder: Path | str,
    kind: Kind = "auto",
    policy_tokenizer: Any = None,
    *,
    step_delimiter: str | None = None,
    separator: str | None = None,
    system: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    context: int | None = None,
    positions: int | None = None,
    chunk: int = CHUNK,
) -> TorchVerifier:
    """The process reward model in `folder`, for a generator with `policy_tokenizer` (default: the model's own).

    `kind` "auto" recognises the layout; the next three arguments overrule what it found. `positions` and `chunk` limit
    the working memory as in `KVTree`. Raises ValueError for a folder of no known layout, and for a tokenizer that does
    not fit: no such step token, a delimiter that it merges away, more ids than the model has embeddings, no template.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form = recognise(folder, kind, tokenizer, step_delimiter, separator, system)
    writer = choose_writer(form, tokenizer, tokenizer if policy_tokenizer is None else policy_tokenizer)
    device = pick_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
    backbone, score = _load(folder, form, tokenizer, device, dtype)
    weight = _unembedding(folder, backbone) if form.likelihood else None
    vocab = backbone.get_input_embeddings().weight.shape[0]
    if (largest := max(tokenizer.get_vocab().values())) >= vocab:
        raise ValueError(
            f"the tokenizer in {folder} has ids up to {largest}, the model only {vocab} embeddings: these files do not "
            "belong together; copy the tokenizer that the model was trained with into the folder"
        )
    tree = load_tree(backbone, context=context, positions=positions, chunk=chunk)
    return TorchVerifier(tree, score, writer, form, vocab, weight)


def choose_writer(form: PrmFormat, tokenizer: Any, policy: Any) -> Writer:
    """Ids as they are where tokenizer and template are the same, else text written anew. Raises ValueError, see
    `load_verifier`."""
    for name, one in (("PRM", tokenizer), ("generator", policy)):
        if not one.is_fast:
            raise ValueError(
                f"the {name}'s tokenizer has no tokenizer.json: convert it to a fast one, which has offsets"
            )
    if form.layout != "delimiter":
        rewriter: Rewriter = (Separated if form.layout == "separator" else Turns)(tokenizer, policy, form)
        rewriter.render([{"role": "user", "content": "A"}])
        return rewriter
    encode_steps(tokenizer, ["A", "A"], form.step_delimiter, 0)
    same_template = tokenizer.chat_template == policy.chat_template
    if same_template and form.system is None and (tokenizer is policy or same_ids(tokenizer, policy)):
        return PassThrough()
    rewriter = Delimited(tokenizer, policy, form)
    if policy.chat_template is not None or tokenizer.chat_template is not None:
        rewriter.render([{"role": "user", "content": "A"}])
    return rewriter


def _load(folder: Path, form: PrmFormat, tokenizer: Any, device: str, dtype: Any) -> tuple[Any, Score]:
    """The model whose output is scored, and how."""
    if form.head == "tokens":
        good, bad = (single_id(tokenizer, token, "answer token") for token in (form.good, form.bad))
        return load_model(folder, device, dtype), lambda logits, _: logits[:, [good, bad]].float().softmax(-1)[:, 0]
    backbone = _load_backbone(folder, dtype).to(device).eval()
    head = read_head(folder).to(device, torch.float32).eval()

    likelihood = read_layers(folder, ("likelihood",)).to(device) if form.likelihood else None

    @torch.inference_mode()
    def score(hidden: Tensor, features: Tensor | None) -> Tensor:
        logits: Tensor = head(hidden.float())
        if likelihood is not None and features is not None:
            logits = logits + likelihood(features)
        return logits.softmax(-1)[:, 1] if form.head == "two_class" else logits[:, 0].sigmoid()

    return backbone, score


def _load_backbone(folder: Path, dtype: Any) -> Any:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    # The name of the folder's own code is dropped with its config: `model_type` must be one that transformers knows.
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    settings = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # or it reports the head, which is read beside it, as unexpected
    try:
        backbone, report = AutoModel.from_pretrained(folder, config=config, output_loading_info=True, **settings)
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} has no weights for {', '.join(missing[:3])} ({len(missing)} in all): copy it anew")
    return backbone


def read_head(folder: Path) -> nn.Module:
    """The scoring head as stored: a linear layer (`score`, `classifier`), or two with ReLU (`score.0`, `score.2`)."""
    return read_layers(folder, ("score.0", "score.2", "score", "classifier"))


def read_layers(folder: Path, known: Sequence[str]) -> nn.Sequential:
    """Those of the linear layers `known` that a folder holds, in fp32, with ReLU between them."""
    stored = tensor_shapes(folder)
    names = [name for name in known if f"{name}.weight" in stored]
    layers: list[nn.Module] = []
    for name in names:
        weight = _tensor(folder, stored, f"{name}.weight")
        bias = _tensor(folder, stored, f"{name}.bias") if f"{name}.bias" in stored else None
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight.float(), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.float(), requires_grad=False)
        layers += [nn.ReLU(), layer] if layers else [layer]
    return nn.Sequential(*layers)


def _unembedding(folder: Path, backbone: Any) -> Tensor:
    """(V, H): the language head stored beside the scoring head, else the input embedding that it is tied to."""
    stored = tensor_shapes(folder)
    if "lm_head.weight" in stored:
        weight = _tensor(folder, stored, "lm_head.weight")
        return weight.to(backbone.device, backbone.dtype)
    return unembedding(backbone)


def _tensor(folder: Path, stored: dict[str, tuple[str, list[int]]], name: str) -> Tensor:
    with safe_open(folder / stored[name][0], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _check_open(seqs: Sequence[VerifierSeq]) -> None:
    if any(seq.unread for seq in seqs):
        raise ValueError("the prompt of a sequence has not run; call go_on until it has")
    if any(not seq.open for seq in seqs):
        raise ValueError("the sequence was closed; fork it before closing if it is still needed")
    if repeated := [index for index, count in Counter(map(id, seqs)).items() if count > 1]:
        raise ValueError(f"{len(repeated)} sequences are given twice in one call; fork them first")
