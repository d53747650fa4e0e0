"""The model of a PRM: transformers' token classification with one label, and optionally a likelihood term.

With `likelihood`, the logit of a step is `score(hidden state of its last token) + likelihood · (least, sum)` of the
log-probabilities that the model's own language head gives the step's tokens. `score` starts at zero, the other weights
at a logistic fit of the training labels, so training starts from what the language model already knows. In the
procedural world the scalar head alone stayed near AUC 0.65 for 400 steps on corrupted rows (one run, docs/prm.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification
from transformers.modeling_outputs import TokenClassifierOutput

from engine.prm_likelihood import step_features, unembedding
from posttrain.guards import IGNORED

FITTED_ROWS = 512
"""Rows that the start weights of the likelihood term are fitted on."""


def load_scalar(folder: Path) -> Any:
    """The causal model in `folder` with a scalar head, fp32; the head is drawn from torch's generator."""
    config = AutoConfig.from_pretrained(folder, num_labels=1)
    config.classifier_dropout = 0.0  # its default of 0.1 is drawn per process
    return AutoModelForTokenClassification.from_pretrained(folder, config=config, dtype=torch.float32)


def add_likelihood(model: Any, folder: Path) -> None:
    """Give `model` the likelihood term, in place. An untied language head is kept as `lm_head`; it is trained too."""
    if not model.config.get_text_config().tie_word_embeddings:
        model.lm_head = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_output_embeddings()
    unembedding(model)  # raises for a model whose logits are not known
    model.likelihood = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.likelihood.weight)
    nn.init.zeros_(model.score.weight)
    # Under its own name, because `save_pretrained` writes the class's name to config.json.
    model.__class__ = type(type(model).__name__, (_WithLikelihood, type(model)), {})


class _WithLikelihood:
    """Mixin for a token-classification model; `steps` (B, T) numbers the tokens of each step, -1 for others."""

    base_model: Any
    score: Any
    likelihood: Any

    def forward(self, input_ids: Tensor, attention_mask: Tensor, steps: Tensor, **_: Any) -> TokenClassifierOutput:
        output = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden_BTH = output.last_hidden_state
        features_BS2 = step_features(hidden_BTH, unembedding(self), input_ids, steps)
        term_BS = self.likelihood(features_BS2).squeeze(-1)
        term_BT = term_BS.gather(1, steps.clamp(min=0)) * (steps >= 0)
        return TokenClassifierOutput(logits=self.score(hidden_BTH) + term_BT[..., None])


@torch.inference_mode()
def start_from_likelihood(model: Any, rows: Any, collate: Any, batch_size: int) -> None:
    """Set the likelihood weights and the head's bias to a logistic fit on the first `FITTED_ROWS` of `rows`."""
    found: list[tuple[Tensor, Tensor]] = []
    for batch in DataLoader(rows.select(range(min(len(rows), FITTED_ROWS))), batch_size, collate_fn=collate):
        ids, steps, labels = (batch[name].to(model.device) for name in ("input_ids", "steps", "labels"))
        hidden = model.base_model(
            input_ids=ids, attention_mask=batch["attention_mask"].to(model.device)
        ).last_hidden_state
        features = step_features(hidden, unembedding(model), ids, steps)
        at = (labels != IGNORED).nonzero(as_tuple=True)
        found.append((features[at[0], steps[at]].cpu(), labels[at].cpu()))
    features_N2, labels_N = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
    *weights, bias = fit_logistic(features_N2, labels_N)
    model.likelihood.weight.copy_(torch.tensor([weights]))
    model.score.bias.fill_(bias)


def fit_logistic(features_NF: NDArray[Any], labels_N: NDArray[Any], ridge: float = 1.0) -> list[float]:
    """Weights and, last, bias of a logistic regression with probabilities as labels: 30 Newton steps.

    `ridge` on standardised features keeps the weights of separable labels finite.
    """
    mean, deviation = features_NF.mean(0), features_NF.std(0) + 1e-9
    inputs = np.column_stack([(features_NF - mean) / deviation, np.ones(len(labels_N))])
    penalty = np.diag([ridge] * features_NF.shape[1] + [1e-3])
    weights = np.zeros(inputs.shape[1])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        slope = inputs.T @ (chance - labels_N) + penalty @ weights
        weights -= np.linalg.solve((inputs * (chance * (1 - chance))[:, None]).T @ inputs + penalty, slope)
    scaled = weights[:-1] / deviation
    return [*scaled.tolist(), float(weights[-1] - scaled @ mean)]
