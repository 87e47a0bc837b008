"""Writes docs/parameters.md from the dataclasses themselves: ``python docs/generate_parameters.py``.

Names, types and defaults are the fields', meanings the lines of the classes' docstrings. What is not a field (the order
in which sampling parameters apply) stands here. ``tests/test_docs.py`` keeps the page in step with the code.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args

from quire import BeamSearchParams, EngineConfig, PoolingParams, SamplingParams, StructuredOutputsParams
from quire.cli.flags import docstring_lines
from quire.reference import config

PAGE = Path(__file__).parent / "parameters.md"

TEXT = """\
# Parameters

<!-- Written by docs/generate_parameters.py from the code. Change the docstrings there, then run it again. -->

Names and meanings are vLLM's. An unknown name, or a value outside its range, is refused when it is given, with an
error that says what would do. The `quire` command takes the engine arguments as flags, and those sampling parameters
that fit on a command line: `max_num_seqs` is `--max-num-seqs`, and what is true or false, such as
`enable_prefix_caching`, can also be `--no-enable-prefix-caching`.

## `EngineConfig`: arguments of `LLM(...)`

{EngineConfig}

## `SamplingParams`: how to choose the next token, and when to stop

{SamplingParams}

Where `LLM.generate` and its siblings get no `SamplingParams`, they take those that the checkpoint's
`generation_config.json` asks for (`LLM.get_default_sampling_params()`), or the defaults above with
`generation_config="none"`. The command line starts from these too, and puts its flags on top (and where the checkpoint
says nothing about `max_tokens`, it takes 256). A `SamplingParams` that you make yourself starts from the table.

### The order in which they apply

To the logits of one position:

1. `structured_outputs`, then `allowed_token_ids`, `bad_words` and `min_tokens` (which bans the tokens that would end
   the text). Each of the last three is skipped at a position where it would leave no token at all; with structured
   outputs none is skipped, and the sequence ends there ([structured.md](structured.md)).
2. `logit_bias` is added.
3. `repetition_penalty`, then `frequency_penalty` and `presence_penalty`.
4. `temperature` divides. At 0 the highest score wins and nothing below applies.
5. `min_p`, `top_k` and `top_p`, in this order: `top_p` counts probability among the tokens that the two others left.
   A token that ties with the last one kept is kept as well.
6. Gumbel noise is added, from a counter-based generator keyed by (seed, which of the `n`, position, token); the highest
   sum wins, which is a draw from the softmax of what was kept.

To the token that was chosen:

1. `stop_token_ids` and the model's end-of-sequence tokens (unless `ignore_eos`), then `max_tokens` and the end of the
   context.
2. `stop` strings, which are looked for in the text. They may begin in one token and end in another; whatever could
   still become one is held back from a stream.

`logprobs` and `prompt_logprobs` are of the raw logits, before all of this.

## `StructuredOutputsParams`: a form for the text

{StructuredOutputsParams}

## `BeamSearchParams`: for `LLM.beam_search`

{BeamSearchParams}

A hypothesis scores its cumulative log-probability / length ** `length_penalty`, of the model's raw logits.

## `PoolingParams`: for `LLM.embed`

{PoolingParams}

The hidden states are those after the model's final norm (transformers' `last_hidden_state`). "mean" computes every
position of its prompt, "last" may take all but one from the prefix cache.
"""


def table(cls: type) -> str:
    """The fields of a dataclass as a Markdown table."""
    meanings = docstring_lines(cls)
    lines = ["| name | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(cls):  # type: ignore[arg-type]
        default = "required" if field.default is MISSING else f"`{field.default!r}`".replace("'", '"')
        kind = str(field.type)
        if hasattr(config, kind):  # a name for a few choices
            kind = ", ".join(f'"{choice}"' for choice in get_args(getattr(config, kind)))
        cells = (f"`{field.name}`", f"`{kind}`", default, meanings[field.name].replace("``", "`"))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return TEXT.format(
        **{
            cls.__name__: table(cls)
            for cls in (EngineConfig, SamplingParams, StructuredOutputsParams, BeamSearchParams, PoolingParams)
        }
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
