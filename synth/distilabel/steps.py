"""Two of distilabel's steps, mended: Magpie rows of their own, reward models on transformers 5.

No postponed annotations here: distilabel looks for `StepInput` itself in a step's signature.
"""

from typing import Any

from distilabel.steps import RewardModelScore, StepInput
from distilabel.steps.tasks import Magpie

from synth.distilabel.asked import Conversation


class RowMagpie(Magpie):  # type: ignore[misc]
    """distilabel's Magpie whose conversations know their row: equal system prompts get different conversations.

    A conversation comes back as what was generated, without the system prompt, with its tokens and whether all of its
    turns ended.
    """

    @property
    def outputs(self) -> Any:
        return ["conversation", "finished", "tokens", "failure", "model_name"]

    def process(self, inputs: StepInput) -> Any:
        """Yields the rows of a batch; `inputs` have `id` and maybe `system_prompt`."""
        conversations, _ = self._prepare_inputs_for_instruction_generation(inputs)
        opened = [Conversation(turns, row["id"]) for turns, row in zip(conversations, inputs, strict=True)]
        for _turn in range(self.n_turns):
            for role in ("user", "assistant"):
                # One that failed is over: what comes after a missing turn would answer another question.
                active = [index for index, each in enumerate(opened) if each.finished]
                if active:
                    self._generate_conversation_turn(role=role, conversations=opened, active_indices=active)
        yield [
            {
                **row,
                "conversation": [turn for turn in each if turn["role"] != "system"],
                "finished": each.finished,
                "tokens": each.tokens,
                "failure": each.failure,
                "model_name": self.llm.model_name,
            }
            for row, each in zip(inputs, opened, strict=True)
        ]


class RowReward(RewardModelScore):  # type: ignore[misc]
    """distilabel's RewardModelScore, one conversation at a time: its own padding goes without an attention mask, and
    transformers 5 hands it a mapping where it expects ids."""

    def _inference(self, inputs: list[dict[str, Any]]) -> list[float]:
        import torch

        scores = []
        for each in inputs:
            turns = self._prepare_conversation(each)
            encoded = self._tokenizer.apply_chat_template(
                turns, return_tensors="pt", return_dict=True, truncation=self.truncation, max_length=self.max_length
            ).to(self._model.device)
            with torch.no_grad():
                logits = self._model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
            if logits.numel() != 1:
                raise ValueError(f"a reward model gives one number, {self.model} gives {logits.numel()}")
            scores.append(round(float(logits), 6))
        return scores
