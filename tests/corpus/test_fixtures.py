from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


def test_the_tiny_model_loads_with_its_tokenizer_and_ends_on_both_end_tokens(
    tiny_model: Path, tiny_tokenizer: Path
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    assert model.config.vocab_size == len(tokenizer) == 512
    assert set(model.generation_config.eos_token_id) == {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for file in tiny_tokenizer.iterdir():
        assert (tiny_model / file.name).read_bytes() == file.read_bytes()
