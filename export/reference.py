"""The Hugging Face model in fp32 and its tokenizer: what every GGUF is measured against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.huggingface import read_json

if TYPE_CHECKING:
    import numpy as np


class Reference:
    """The model in folder `model`, on `device`, in fp32. transformers' own classes, imported here and nowhere else."""

    def __init__(self, model: Path, device: str) -> None:
        import torch
        from transformers import PreTrainedTokenizerFast

        self._device = device
        self._model = _model_class(model).from_pretrained(model, dtype=torch.float32).to(device).eval()
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        self.end_ids = _end_ids(model) | {self._tokenizer.eos_token_id}
        """Tokens that end generation."""
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.context = int(self._model.config.max_position_embeddings)

    def modules(self) -> Iterator[tuple[str, Any]]:
        """(name, module) of the model and all its parts."""
        return self._model.named_modules()  # type: ignore[no-any-return]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; special tokens in it count as such, none is added."""
        encodings = self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def render_text(self, messages: list[dict[str, str]], generation_prompt: bool = True) -> str:
        """The rendered chat template."""
        return self._tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            messages, add_generation_prompt=generation_prompt, tokenize=False
        )

    def render(self, messages: list[dict[str, str]], generation_prompt: bool = True) -> list[int]:
        """Token ids of the rendered chat template."""
        return self._tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            messages, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False
        )

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """Natural-log probabilities of the token after each of `ids`: float64 [len(ids), vocabulary]."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([ids], device=self._device), use_cache=False).logits[0]
            return torch.log_softmax(logits.double(), dim=-1).cpu().numpy()


def _model_class(model: Path) -> Any:
    if read_json(model / "config.json").get("model_type") == "smollm3":
        from transformers.models.smollm3.modeling_smollm3 import SmolLM3ForCausalLM

        return SmolLM3ForCausalLM
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    return LlamaForCausalLM


def _end_ids(model: Path) -> set[int]:
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (path := model / name).is_file():
            found: Any = json.loads(path.read_text()).get("eos_token_id")
            ids |= set(found) if isinstance(found, list) else set() if found is None else {found}
    return ids
