"""From events to outputs: what a completion gives after a stop string has ended it."""

from __future__ import annotations

from quire.assets import load_assets
from quire.reference.config import EngineConfig
from quire.reference.control.params import SamplingParams
from quire.reference.control.request import Event
from quire.reference.output_processor import OutputProcessor


def test_a_completion_that_a_stop_string_ended_is_not_heard_of_again() -> None:
    """The step that was in flight still brings a token of it, while the request's other completion goes on."""
    tokenizer = load_assets(EngineConfig()).get_tokenizer()
    processor = OutputProcessor(tokenizer)
    processor.add("r", [5], SamplingParams(n=2, stop="!"), stream=True)
    [end] = tokenizer.encode("!", add_special_tokens=False)

    first = processor.process([Event("r", 0, [end]), Event("r", 1, [7])])
    assert first.stopped == [("r", 0)]
    assert [(c.index, c.finish_reason) for c in first.outputs[0].outputs] == [(0, "stop"), (1, None)]

    late = processor.process([Event("r", 0, [8]), Event("r", 1, [9])])
    assert [(c.index, c.token_ids) for c in late.outputs[0].outputs] == [(1, [9])]
    assert processor.process([Event("r", 0, [8])]).outputs == []
