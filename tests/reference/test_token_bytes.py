"""The bytes of single tokens: put together they are the text, also where a character spans tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from quire.backend import model_path
from quire.reference.config import EngineConfig
from quire.reference.tokenizer import load_tokenizer, token_bytes

BYTE_LEVEL = load_tokenizer(model_path(EngineConfig()))


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a few whole tokens, and a token for each byte."""
    entries = ["<unk>", "\ufffd", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcé▁"]
    bpe = models.BPE(
        {entry: i for i, entry in enumerate(entries)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 0, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


FALLBACK = fallback_tokenizer()


def joined(tokenizer, text: str) -> bytes:
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = [token_bytes(tokenizer, i, tokenizer.decode([i])) for i in ids]
    assert None not in parts
    return b"".join(parts)


@given(st.text(max_size=40))
def test_of_a_byte_level_vocabulary(text: str) -> None:
    assert joined(BYTE_LEVEL, text) == text.encode()


@given(st.text("abcé\ufffd🎉ö€", max_size=20))
def test_of_a_vocabulary_with_byte_fallback(text: str) -> None:
    assert joined(FALLBACK, text) == text.encode()


def test_where_the_vocabulary_does_not_tell() -> None:
    class Opaque:
        def convert_ids_to_tokens(self, token_id: int) -> str:
            return "▁part"

    assert token_bytes(Opaque(), 0, "\ufffd") is None
