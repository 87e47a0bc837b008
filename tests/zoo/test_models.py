"""The shipped checkpoints: small enough, readable by transformers, and right."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire.report import Row
from quire.zoo import MODELS, model_path
from quire.zoo.evaluate import GOALS, Question, questions, score, table, transformers_engine
from quire.zoo.world.refuse import REFUSAL

LIMIT = {"pocket": 16_000_000, "pocket-draft": 4_000_000}  # bytes


@pytest.mark.parametrize("name", MODELS)
def test_sizes(name: str) -> None:
    assert sum(f.stat().st_size for f in model_path(name).rglob("*") if f.is_file()) <= LIMIT[name]


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(KeyError, match="pocket-draft"):
        model_path("gpt")


@pytest.mark.parametrize("name", MODELS)
def test_the_checkpoint_is_a_plain_llama(name: str) -> None:
    config = json.loads((model_path(name) / "config.json").read_text())
    assert config["model_type"] == "llama" and config["tie_word_embeddings"]
    with safe_open(model_path(name) / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
        assert weights.get_tensor("model.embed_tokens.weight").dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(model_path(name))
    assert model.config.max_position_embeddings == 2048
    tokenizer = AutoTokenizer.from_pretrained(model_path(name))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_answers(name: str, dtype: str) -> None:
    asked = {
        "What is 47 + 85?": "47 + 85 = 132",
        "reverse: one two three four": "four, three, two, one",
        "Extract name and city as JSON: Anna moved to Oslo.": '{"name": "Anna", "city": "Oslo"}',
        "What is the capital of France?": REFUSAL,
        "apple: 3\npear: 9\nfig: 4\n\nWhat is pear?": "pear: 9",
        "What is CUDA?": "CUDA is NVIDIA's platform for programming GPUs in a dialect of C++.",
    }
    questions_ = [Question([{"role": "user", "content": text}], right) for text, right in asked.items()]
    answers = transformers_engine(name, dtype)(questions_)
    assert answers == list(asked.values())


def test_scoring_counts_exact_matches_and_refusals() -> None:
    asked = [Question([], "a"), Question([], "b")]
    assert score("copy", asked, ["a ", "c"]) == 0.5
    assert score("false-refuse", asked, [REFUSAL, "c"]) == 0.5
    assert "| copy | 50.0% | ≥ 95% |" in table([Row("copy", 0.5, "share")])


def test_recall_prompts_have_the_lengths_that_the_rows_promise(pocket_tokenizer) -> None:
    from quire.zoo.chat import render

    assert "recall-2k" in GOALS
    for row, low, high in (("recall-1k", 700, 1024), ("recall-2k", 1500, 1950)):
        for question in questions(row, 10, pocket_tokenizer):
            assert low <= len(pocket_tokenizer.encode(render(question.messages, None, True)).ids) <= high
