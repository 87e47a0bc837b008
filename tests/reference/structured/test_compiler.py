"""The compiler: what it keeps, how long, and what is not usable for it."""

from __future__ import annotations

import sys

import pytest

from quire import RequestError
from quire import StructuredOutputsParams as Form
from quire.reference.structured import compiler
from quire.reference.structured.compiler import Compiler
from tests.toys import byte_tokenizer


def forms(count: int) -> list[Form]:
    return [Form(regex=f"a{{{i + 1}}}") for i in range(count)]


def test_the_tokenizer_is_asked_for_once_and_late():
    asked = []
    one = Compiler(lambda: asked.append(1) or byte_tokenizer())
    assert one.find(Form(regex="ab")) is None and not asked
    first = one.compile(Form(regex="ab"))
    assert one.compile(Form(regex="ab")) is first and one.find(Form(regex="ab")) is first
    one.compile(Form(regex="cd"))
    assert asked == [1]


def test_the_least_recently_used_go_first(monkeypatch):
    monkeypatch.setattr(compiler, "CACHE_ENTRIES", 3)
    one = Compiler(byte_tokenizer)
    for form in forms(3):
        one.compile(form)
    assert one.find(forms(1)[0]) is not None
    one.compile(Form(regex="b"))
    assert [one.find(form) is not None for form in forms(3)] == [True, False, True]


def test_large_ones_go_first_by_their_bytes(monkeypatch):
    monkeypatch.setattr(compiler, "CACHE_BYTES", 1)
    one = Compiler(byte_tokenizer)
    for form in forms(3):
        one.compile(form)
    assert [one.find(form) is not None for form in forms(3)] == [False, False, True]  # the last one is kept


def test_a_grammar_is_compiled_anew_after_many_uses_or_when_told(monkeypatch):
    monkeypatch.setattr(compiler, "USES", 2)
    one, form = Compiler(byte_tokenizer), Form(regex="ab")
    first = one.compile(form)
    assert one.find(form) is one.find(form) is first and one.find(form) is None
    second = one.compile(form)
    assert second is not first and one.find(form) is second
    one.forget(form)
    assert one.find(form) is None


def test_truncation_and_padding_stay_what_they_were():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    try:
        text, end = compiler.serialise(tokenizer)
        assert tokenizer.backend_tokenizer.truncation["max_length"] == 5 and end == tokenizer.eos_token_id
        assert '"truncation":null' in text.replace(" ", "")
    finally:
        tokenizer.backend_tokenizer.no_truncation()


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)  # importing it is an ImportError from here on
    with pytest.raises(RequestError, match=r"pip install 'quire\[server\]'"):
        Compiler(byte_tokenizer).compile(Form(regex="ab"))
