"""Loads worth watching: each one shows an idea of the engine within a second or two, on the embedded model.

A ``Scenario`` says which requests to send (over HTTP, to the server's OpenAI endpoints) and when, which engine
arguments make the idea visible, and what to tell the person who watches. ``play`` sends the requests. The playground's
Lab plays them live; ``record.py`` plays them for the traces that notebooks and the documentation show.

The words come with moments. A moment is something that happens in a trace; the drawing component finds it and names it
in its ``quire-step`` events (``detail.happened``), so that a sentence is said when the eye can see what it says. They
are said in their order: each at the first step with its moment that is not before the step of the sentence before it.

    start       the first step           share     a sequence starts on blocks of the prefix cache
    prompt      a whole prompt, or the   fork      a sequence forks: the child shares all blocks of the parent
                last chunk of one        copy      a shared block is copied before it is written
    chunk       a part of a prompt       preempt   a sequence gives its blocks back
    decode      a token of an answer     swap_out, swap_in     blocks move to host memory, and back
    queue       somebody waits           resume    a preempted sequence starts again
    evict       a cached block is used   accept, reject        drafts that the target agrees with, or not
                for something else       finish    a sequence ends
    idle        nobody runs any more
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

MOMENTS = (
    "start", "prompt", "chunk", "decode", "queue", "share", "fork", "copy", "preempt", "resume", "swap_out", "swap_in",
    "evict", "accept", "reject", "finish", "idle",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One request: POST ``body`` as JSON to ``path``, ``after`` seconds into the scenario."""

    path: str
    body: Mapping[str, Any]
    after: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """A load and its story.

    name        short, for addresses and files: the trace is traces/NAME.jsonl
    title       for people
    idea        one sentence: what it shows
    narration   (moment, sentence), in the order in which they are said
    calls       the requests
    engine      arguments of ``quire serve`` under which it shows best
    contrast    (engine argument, value, what then differs): the same load with the idea switched off, if it can be
    views       parts of the picture that matter most, as in the component's attribute ``views``
    """

    name: str
    title: str
    idea: str
    narration: tuple[tuple[str, str], ...]
    calls: tuple[Call, ...]
    engine: Mapping[str, Any] = field(default_factory=dict)
    contrast: tuple[str, Any, str] | None = None
    views: tuple[str, ...] = ("blocks", "tables", "schedule", "usage")


def chat(*turns: str, system: str | None = None, after: float = 0.0, **fields: Any) -> Call:
    """A chat request; ``turns`` alternate between user and assistant."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return Call("/v1/chat/completions", {"messages": messages, **fields}, after)


async def play(scenario: Scenario, client: httpx.AsyncClient) -> list[httpx.Response]:
    """Send the scenario's requests, each at its time, and return their responses in the order of ``calls``.

    ``client`` knows the server (``base_url``) and the key. Responses with an error status are returned like others.
    """

    async def send(call: Call) -> httpx.Response:
        await asyncio.sleep(call.after)
        return await client.post(call.path, json=dict(call.body), timeout=120)

    return list(await asyncio.gather(*(send(call) for call in scenario.calls)))


ASSISTANT = (
    "You are the help desk of a small museum by the sea. Be friendly and brief. The museum is open from ten to six, on "
    "Thursdays until nine, and closed on Mondays. Tickets cost eight coins, children pay half. There is a café on the "
    "first floor, a shop at the exit, and a garden behind the house. Lamps, clocks, kites and one large whale can be "
    "seen all year. Dogs must wait outside. If you do not know an answer, say so and name somebody who does."
)
QUESTIONS = (
    "What is a KV block?",
    "What is 417 + 268?",
    "Why is prefix caching useful?",
    "Sort: plum, whale, lamp, dog",
    "What is preemption?",
    "Reverse: hill, garden, zebra",
)
DOCUMENT = " ".join(
    f"On day {day} the keeper of the {place} wrote down the tide, counted {day + 3} boats and lit {place} lamp number "
    f"{day * 7 % 31}."
    for day, place in enumerate(("harbour", "island", "bridge", "tower", "museum", "garden", "library", "mill") * 3, 1)
)
WORDS = "piano, lucky, zebra, garden, hill, lamp, whale, plum, dog, ring, guard, light"

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="prefix",
        title="A shared system prompt",
        idea="Six chats begin with the same system prompt. Its K/V is computed once; the others share its blocks.",
        narration=(
            ("start", "The first chat computes its whole prompt. Full blocks are published in the prefix cache."),
            ("share", "The next chat begins with the same tokens: it takes those blocks as they are (hatched)."),
            ("prompt", "Only what differs, the question, is computed: a handful of tokens in place of a hundred."),
            ("finish", "A chat ends. Shared blocks stay with the others; its own are free, but keep what they hold."),
            ("idle", "All is quiet. The grey blocks are free, and still a cache: the next such chat will find them."),
        ),
        calls=tuple(
            chat(question, system=ASSISTANT, after=0.035 * i, temperature=0, max_tokens=24)
            for i, question in enumerate(QUESTIONS)
        ),
        engine={"num_blocks": 65, "max_model_len": 512},
        contrast=("enable_prefix_caching", False, "Every chat computes the system prompt again, into its own blocks."),
        views=("blocks", "tables", "prefix", "schedule"),
    ),
    Scenario(
        name="parallel",
        title="Parallel samples, copied on write",
        idea="One prompt, six answers. They share the prompt's blocks and copy only the block they write into.",
        narration=(
            ("start", "One prompt is computed, once, though six answers were asked for."),
            ("fork", "Five siblings fork off: their block tables are copies, their blocks are the same (hatched)."),
            ("copy", "The prompt's last block is only partly filled. Each sibling copies it before it writes there."),
            ("decode", "From here the answers differ, and each grows in blocks of its own."),
            ("finish", "A sibling ends and gives its own blocks back. The prompt's stay while anybody uses them."),
        ),
        calls=(
            chat(
                "Tell me a story about a brave fox and a lamp.", n=6, temperature=0.9, seed=7, max_tokens=44,
                ignore_eos=True,
            ),
        ),
        engine={"block_size": 8, "num_blocks": 65, "max_model_len": 256},
    ),
    Scenario(
        name="beam",
        title="Beam search",
        idea="Four beams fork and die at every step. Sharing blocks makes that a matter of reference counts.",
        narration=(
            ("start", "The prompt is computed once for all beams."),
            ("fork", "The best continuations live on: a beam with two of them forks, another one dies."),
            ("copy", "A child copies the block that it is about to write, and no other."),
            ("finish", "A beam that no good continuation comes from dies, and gives back what only it has held."),
            ("idle", "The search is over: the best beam is the answer."),
        ),
        calls=(
            Call(
                "/v1/chat/completions",
                {
                    "messages": [{"role": "user", "content": "Tell me a story about a hawk in a museum."}],
                    "use_beam_search": True, "n": 4, "max_tokens": 40, "temperature": 0,
                },
            ),
        ),
        engine={"block_size": 8, "num_blocks": 49, "max_model_len": 256},
    ),
    Scenario(
        name="pressure",
        title="Memory pressure and preemption",
        idea="Six stories grow in a pool that is too small for them. The latest give way, and come back later.",
        narration=(
            ("start", "Six stories begin. There is room for all of them, as long as they are short."),
            ("preempt", "The pool is empty. The latest sequence gives its blocks back to those who came before it."),
            ("queue", "It waits: what it has written so far is kept as tokens, its K/V is not."),
            ("resume", "Blocks are free again. It computes its K/V anew, in one chunk, and goes on as if nothing was."),
            ("idle", "All are done. Preemption took time, and changed no story: the tokens are the same without it."),
        ),
        calls=tuple(
            chat(
                f"Tell me a story about a {who}.", temperature=0.8, seed=i, max_tokens=72, ignore_eos=True,
                after=0.01 * i,
            )
            for i, who in enumerate(("fox", "hawk", "ghost", "sailor", "clock", "whale"))
        ),
        engine={"block_size": 8, "num_blocks": 41, "max_model_len": 256},
        contrast=("preemption_mode", "swap", "The victim's blocks move to host memory and back."),
    ),
    Scenario(
        name="chunked",
        title="A long prompt amid chats",
        idea="A prompt of a thousand tokens arrives while others chat. It is computed in chunks beside their decodes.",
        narration=(
            ("start", "Three chats are under way: each step brings every one of them a token."),
            ("chunk", "A long prompt arrives. A step has a budget of tokens: chats first, the rest is a chunk of it."),
            ("decode", "The chats go on meanwhile, a token per step, though each step now takes longer."),
            ("prompt", "The last chunk: the long prompt has its first token. It decodes with the others from here on."),
        ),
        calls=(
            *(
                chat(f"Tell me a story about a {who}.", temperature=0.8, seed=i, max_tokens=64, ignore_eos=True)
                for i, who in enumerate(("fox", "hawk", "ghost"))
            ),
            chat(DOCUMENT, "I have read it.", "What is chunked prefill?", temperature=0, max_tokens=24, after=0.06),
        ),
        engine={"num_blocks": 145, "max_model_len": 2048, "max_num_batched_tokens": 64},
        contrast=("enable_chunked_prefill", False, "The whole prompt is one step, and everybody waits for it."),
        views=("schedule", "blocks", "usage"),
    ),
    Scenario(
        name="speculation",
        title="Speculation: hit and miss",
        idea="Drafts are looked up in the text so far. A list that is copied is guessed well, a story is not.",
        narration=(
            ("start", "Two requests: copy a list, and tell a story. Drafts for both are looked up in their own text."),
            ("accept", "The target agrees with the drafts: several tokens in one step."),
            ("reject", "Here it does not: the rejected drafts are taken off the length again. The text is the same."),
            ("finish", "The list is done in fewer steps than it has tokens."),
        ),
        calls=(
            chat(f"Copy: {WORDS}", temperature=0, max_tokens=64),
            chat("Tell me a story about a fox.", temperature=0, max_tokens=48, ignore_eos=True),
        ),
        engine={
            "num_blocks": 49, "max_model_len": 512,
            "speculative_config": {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 4},
        },
        contrast=("speculative_config", None, "One token per step for each of them."),
        views=("speculation", "schedule", "tables", "blocks"),
    ),
)  # fmt: skip


def scenario(name: str) -> Scenario:
    """The scenario of that name. Raises KeyError for another."""
    for one in SCENARIOS:
        if one.name == name:
            return one
    raise KeyError(f"no scenario {name!r}; there are {', '.join(one.name for one in SCENARIOS)}")
