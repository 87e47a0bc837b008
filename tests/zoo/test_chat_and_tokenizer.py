"""The tokenizer's promises, and that training sees exactly the text that the chat template renders."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from quire.zoo import MODELS, model_path, world
from quire.zoo.chat import END, PAD, START, TEXT, loss_weights, render

TOKENIZER = Tokenizer.from_file(str(model_path("pocket") / "tokenizer.json"))


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    # A marker that stands literally in the text is that marker; everything else comes back as it was.
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.integers(0, 10**12))
def test_one_token_per_digit(number: int) -> None:
    assert TOKENIZER.encode(str(number), add_special_tokens=False).tokens == list(str(number))


def test_the_vocabulary() -> None:
    assert TOKENIZER.get_vocab_size() == 4096
    assert [TOKENIZER.token_to_id(t) for t in (TEXT, START, END, PAD)] == [0, 1, 2, 3]
    assert TOKENIZER.token_to_id("assistant") is not None


def test_both_models_share_it() -> None:
    files = [(model_path(name) / "tokenizer.json").read_bytes() for name in MODELS]
    assert files[0] == files[1]


def test_python_renders_what_the_template_renders() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path("pocket"))
    rng = random.Random(0)
    for _ in range(300):
        example = world.conversation(rng, 400)
        assert render(example.messages, example.tools) == tokenizer.apply_chat_template(
            example.messages, tools=example.tools, tokenize=False
        )
        prompt = example.messages[:-1]
        if prompt:
            assert render(prompt, example.tools, True) == tokenizer.apply_chat_template(
                prompt, tools=example.tools, tokenize=False, add_generation_prompt=True
            )


def test_the_template_writes_structured_tool_calls_as_training_does() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path("pocket"))
    rng = random.Random(1)
    example = world.tools.make(rng, False)
    text = example.messages[1]["content"]
    body = text.split('"arguments": ')[1].removesuffix("}\n</tool_call>")
    name = text.split('"name": "')[1].split('"')[0]
    for content in (None, ""):
        called = {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": body}}],
        }
        messages = [example.messages[0], called]
        text = tokenizer.apply_chat_template(messages, tools=example.tools, tokenize=False)
        assert text == render(example.messages[:2], example.tools)


def test_weights_mark_the_assistants_words() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "1 + 1 = 2"},
    ]
    ids = np.array(TOKENIZER.encode(render(messages)).ids)
    weights = loss_weights(ids, 1, 2, TOKENIZER.token_to_id("assistant"), 0.05)
    said = TOKENIZER.decode(ids[weights == 1.0].tolist(), skip_special_tokens=False)
    assert said == f"Hello! How can I help you?{END}1 + 1 = 2{END}"
