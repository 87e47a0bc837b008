"""Small real things for tests: a byte-level tokenizer, trained on the spot, and tiny random checkpoints."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

CORPUS = [
    "the quick brown fox jumps over the lazy dog. Stop! She said: stop it, now.",
    "naïve café — 你好，世界 🙂🙃 Ünïcödé ελληνικά русский",
    "one two three four five six seven eight nine ten",
] * 8
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('nobody may not speak') }}{% endif %}"
    "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@cache
def byte_tokenizer(vocab_size: int = 384) -> Any:
    """A byte-level BPE as a transformers tokenizer: any text round-trips, and characters do get split over tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_checkpoint(folder: Path, *, tokenizer: bool = True, **changes: Any) -> Path:
    """A two-layer Llama with random weights, saved by transformers, with the tokenizer above (token 0 ends)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 0,
        } | changes
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder
