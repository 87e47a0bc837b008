"""Scenarios for the documentation: one idea, on and off.

A concept is shown by two traces of one load: with the idea, and without it. Some are scenarios of the playground's Lab
as they are, and only their other half is here; the rest is too quiet to be watched live, but good to step through.
``python -m quire.ui.record`` records them like the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire.ui.scenarios import Call, Scenario, chat, scenario


def other(name: str, of: Scenario, calls: tuple[Call, ...] = (), **engine: Any) -> Scenario:
    """The other half of a pair: the same load under other engine arguments (None: the default), or other calls."""
    arguments: Mapping[str, Any] = {k: v for k, v in {**of.engine, **engine}.items() if v is not None}
    return replace(of, name=name, engine=arguments, calls=calls or of.calls, contrast=None)


ANSWER = Scenario(
    name="answer",
    title="One answer",
    idea="A prompt is computed at once, the answer token by token: each step reads all K/V and adds one position.",
    narration=(
        ("prompt", "The whole prompt in one step. Its keys and values stay in the cache."),
        ("decode", "One token: one position is computed, all those before it are read."),
        ("finish", "The end. The blocks are free again."),
    ),
    calls=(chat("Tell me a story about a fox.", temperature=0.8, seed=1, max_tokens=40, ignore_eos=True),),
    engine={"block_size": 8, "num_blocks": 17, "max_model_len": 128},
    views=("tables", "blocks", "schedule"),
)

PAGING = Scenario(
    name="paging",
    title="Eight stories in 512 slots",
    idea="Memory is handed out in blocks of 16 slots as stories grow, so all eight run at once.",
    narration=(
        ("start", "Each story takes the blocks of its prompt, and no more."),
        ("decode", "A block is added when the last one is full."),
        ("idle", "All eight were done together."),
    ),
    calls=tuple(
        chat(f"Tell me a story about a {who}.", temperature=0.8, seed=i, max_tokens=36, ignore_eos=True)
        for i, who in enumerate(("fox", "hawk", "ghost", "sailor", "clock", "whale", "lamp", "dog"))
    ),
    engine={"block_size": 16, "num_blocks": 33, "max_model_len": 128, "enable_prefix_caching": False},
    views=("blocks", "tables", "schedule"),
)

BATCHING = Scenario(
    name="batching",
    title="Six chats arrive, one after the other",
    idea="Whoever arrives joins the next step; whoever is done leaves its place at once.",
    narration=(
        ("start", "The first chat has the engine for itself."),
        ("prompt", "Another one arrives: its prompt is computed in the same step as the first one's next token."),
        ("finish", "An answer ends. Nobody waits for the longest."),
    ),
    calls=tuple(
        chat(question, temperature=0.8, seed=i, max_tokens=tokens, ignore_eos=True, after=0.02 * i)
        for i, (question, tokens) in enumerate(
            (
                ("Tell me a story about a fox.", 40), ("What is 417 + 268?", 8), ("What is preemption?", 24),
                ("Sort: plum, whale, lamp, dog", 12), ("Tell me a story about a hawk.", 36),
                ("Reverse: hill, garden, zebra", 10),
            )
        )
    ),
    engine={"num_blocks": 33, "max_model_len": 256},
    views=("schedule", "usage", "tables"),
)  # fmt: skip

AHEAD = Scenario(
    name="ahead",
    title="A step ahead of the tokens",
    idea="Step n+1 is planned and launched before the tokens of step n are known. An end is seen one step late.",
    narration=(
        ("start", "Six questions. Their answers end where the model says so."),
        ("finish", "The model has ended this answer, and one more step of it was already under way. It is dropped."),
    ),
    calls=tuple(
        chat(question, temperature=0, max_tokens=24)
        for question in ("What is 417 + 268?", "What is 58 + 367?", "Sort: plum, whale, lamp", "What is a KV block?")
    ),
    engine={"num_blocks": 33, "max_model_len": 256, "async_scheduling": True},
    views=("schedule", "tables"),
)  # fmt: skip

# What is said to the six siblings, said by six requests that know nothing of each other.
_TWINS = tuple(
    replace(scenario("parallel").calls[0], body={**scenario("parallel").calls[0].body, "n": 1, "seed": seed})
    for seed in range(6)
)

PAIRS: tuple[Scenario, ...] = (
    ANSWER,
    other("crowd", ANSWER, (*ANSWER.calls, *PAGING.calls[1:5]), num_blocks=41, max_num_batched_tokens=24),
    PAGING,
    other("paging_off", PAGING, block_size=128, num_blocks=5),
    BATCHING,
    other("batching_off", BATCHING, max_num_seqs=1),
    AHEAD,
    other("ahead_off", AHEAD, async_scheduling=False),
    other("chunked_off", scenario("chunked"), enable_chunked_prefill=False, max_num_batched_tokens=2048),
    other("parallel_off", scenario("parallel"), _TWINS, enable_prefix_caching=False, num_blocks=97),
    other("parallel_reference", scenario("parallel"), backend="reference"),
    other("prefix_off", scenario("prefix"), enable_prefix_caching=False, num_blocks=97),
    other("pressure_swap", scenario("pressure"), preemption_mode="swap"),
    other("speculation_off", scenario("speculation"), speculative_config=None),
)
