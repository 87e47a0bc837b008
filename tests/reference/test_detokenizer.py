"""Incremental text: whole characters only, stop strings across tokens, pieces that add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.reference.detokenizer import REPLACEMENT, CompletionText, Detokenizer, find_stop, partial_stop
from tests.toys import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXTS = st.text(alphabet=st.sampled_from("abStop !.,é你🙂👩🏽‍🚀\n\u0301"), max_size=30)
TOKEN_LISTS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def feed(completion: CompletionText, tokens: list[int]) -> tuple[list[str], str | None, int]:
    """Push tokens until a stop; the pieces a stream shows, the stop, and how many tokens were used."""
    pieces = []
    for used, token in enumerate(tokens, 1):
        stop = completion.push(token)
        if stop is not None:
            return [*pieces, completion.take(final=True)], stop, used
        pieces.append(completion.take())
    return [*pieces, completion.take(final=True)], None, len(tokens)


@given(TEXTS, TEXTS)
def test_any_text_comes_back_and_no_part_of_a_character_is_shown(prompt, text):
    pieces, _, _ = feed(CompletionText(Detokenizer(TOKENIZER, encode(prompt))), encode(text))
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@given(TOKEN_LISTS, TOKEN_LISTS)
def test_any_tokens_give_what_decoding_them_at_once_gives(prompt, tokens):
    """Also bytes that are no UTF-8 (a random model writes them); only at the very end they stay hidden."""
    detokenizer = Detokenizer(TOKENIZER, prompt, skip_special_tokens=False)
    pieces = [detokenizer.push(t) for t in tokens]
    whole = TOKENIZER.decode(prompt + tokens, skip_special_tokens=False)
    before = TOKENIZER.decode(prompt, skip_special_tokens=False).rstrip(REPLACEMENT)
    assert before + "".join(pieces) == whole.rstrip(REPLACEMENT)


def test_a_prompt_that_ends_within_a_character_gets_the_whole_character():
    *head, last = encode("ab👩")
    assert Detokenizer(TOKENIZER, head).push(last) == "👩"


def test_special_tokens_are_hidden_or_shown():
    tokens = [*encode("one"), 0, *encode(" two")]
    for skip, text in ((True, "one two"), (False, "one<|end|> two")):
        detokenizer = Detokenizer(TOKENIZER, skip_special_tokens=skip)
        assert "".join(detokenizer.push(t) for t in tokens) == text


def test_sentencepiece_spaces_depend_on_what_stands_before():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    pieces = [Detokenizer(tokenizer, [1]).push(2), *map(Detokenizer(tokenizer).push, [1, 2, 3])]
    assert pieces == [" world", "Hello", " world", "!"]


STOPS = st.lists(st.text(alphabet="abS t!", min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.text(alphabet="abStop!é ", max_size=40), STOPS, st.booleans())
def test_a_stop_string_ends_the_text_wherever_the_tokens_are_cut(text, stops, include):
    completion = CompletionText(Detokenizer(TOKENIZER), stop=stops, include_stop=include)
    tokens = encode(text)
    pieces, stop, used = feed(completion, tokens)
    # What reading character by character finds.
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(s) for s in stops)]
    if not ends:
        assert stop is None and "".join(pieces) == text
        return
    expected = max((s for s in stops if text[: ends[0]].endswith(s)), key=len)
    assert stop == expected
    assert "".join(pieces) == completion.text == (text[: ends[0]] if include else text[: ends[0] - len(expected)])
    decoded = TOKENIZER.decode(tokens[:used])
    assert stop in decoded and stop not in TOKENIZER.decode(tokens[: used - 1])[ends[0] - len(stop) :]


def test_no_part_of_a_stop_string_is_ever_shown():
    completion = CompletionText(Detokenizer(TOKENIZER), stop=["STOP"])
    shown = []
    for character in "xSTxSTOP":
        completion.push(encode(character)[0])
        shown.append(completion.take())
    assert shown == ["x", "", "", "STx", "", "", "", ""]


def test_stop_strings_do_not_count_within_min_tokens():
    completion = CompletionText(Detokenizer(TOKENIZER), stop=["b"], min_tokens=4)
    pieces, stop, used = feed(completion, [encode(c)[0] for c in "abcdefbgh"])
    assert ("".join(pieces), stop, used) == ("abcdef", "b", 7)
    completion = CompletionText(Detokenizer(TOKENIZER), stop=["b"], min_tokens=2)  # the last of them is one of them
    pieces, stop, used = feed(completion, [encode(c)[0] for c in "abcb"])
    assert ("".join(pieces), stop, used) == ("abc", "b", 4)


@pytest.mark.parametrize(
    ("text", "stop", "new_from", "found"),
    [
        ("abc", ["c"], 2, (2, "c")),
        ("abc", ["abc", "b"], 0, (1, "b")),  # "b" is complete one character earlier
        ("abc", ["bc", "abc"], 2, (0, "abc")),  # both are complete at once: the longer one
        ("abcabc", ["ab"], 3, (3, "ab")),  # the first one is old news
        ("abc", ["d"], 0, None),
    ],
)
def test_find_stop(text, stop, new_from, found):
    assert find_stop(text, stop, new_from=new_from) == found


def test_partial_stop_is_the_longest_end_that_could_grow():
    assert partial_stop("xxab", ["abc", "babb"]) == 2
    assert partial_stop("xxab", ["xab!"]) == 3
    assert partial_stop("xxab", ["ab"]) == 0  # complete, not partial
    assert partial_stop("", ["ab"]) == 0
