"""Exercises of notebooks 08 (sampling and determinism) and 09 (speculative decoding)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quire.learn.answers import Wrong, array, call, function, number


def choose(answer: Any) -> str:
    """08-a: the token of logits [V] at a temperature, given Gumbel noise [V]; greedy at 0."""
    f = function(answer)
    rng = np.random.default_rng(8)
    for temperature in (0.0, 1.0, 0.3, 2.5):
        for _ in range(50):
            logits, noise = rng.normal(size=20) * 2, -np.log(-np.log(rng.random(20)))
            right = logits.argmax() if temperature == 0 else (logits / temperature + noise).argmax()
            with np.errstate(all="ignore"):
                got = number(call(f, logits, temperature, noise))
            if got == right:
                continue
            if temperature == 0:
                raise Wrong("Temperature 0 is greedy: the largest logit wins, and there is no luck in it.")
            if temperature == 1:
                raise Wrong("At temperature 1: perturb every score with its own noise, and take the largest sum.")
            if got == ((logits + noise) / temperature).argmax():
                raise Wrong("Dividing logits and noise alike changes no order. Which of the two has a temperature?")
            if got == (logits * temperature + noise).argmax():
                raise Wrong("A high temperature makes tokens more alike: their scores have to move closer together.")
            raise Wrong(f"At temperature {temperature} another token has the largest perturbed score.")
    return "Right. The noise does not depend on the temperature: that will pay off in speculative decoding."


def keep_top_p(answer: Any) -> str:
    """08-b: which tokens top-p keeps: a mask [V] for probabilities [V]."""
    f = function(answer)
    for probs, p in (
        ([0.5, 0.25, 0.125, 0.125], 0.6),
        ([0.125, 0.5, 0.125, 0.25], 0.6),
        ([0.5, 0.25, 0.25], 0.5),
        ([0.25, 0.5, 0.25], 0.75),
        ([0.9, 0.1], 0.01),
        ([0.25, 0.5, 0.25], 1.0),
    ):
        order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
        count = next(n for n in range(1, len(probs) + 1) if sum(probs[i] for i in order[:n]) >= p)
        kept = array(call(f, np.array(probs), p), (len(probs),)) != 0
        smallest = [probs[i] for i in order[:count]]
        if sorted((x for x, k in zip(probs, kept) if k), reverse=True) == smallest:  # ties: whichever
            continue
        about = f"probabilities {probs}, p = {p}: "
        if not kept.any():
            raise Wrong(about + "nothing is kept, and something has to be sampled.")
        if kept.sum() < count:
            raise Wrong(about + "the token that carries the sum over p belongs to it: without it p is not reached.")
        if kept.sum() > count:
            raise Wrong(about + "a smaller set reaches p already.")
        raise Wrong(about + "the likeliest tokens are kept. The mask is in the order of the tokens, not of a sort.")
    return "Right: the smallest set of likeliest tokens whose probability reaches p."


def accepted(answer: Any) -> str:
    """09-a: the tokens that a verification brings: drafts [k], and the target's own choices at k + 1 positions."""
    f = function(answer)
    for drafts, own in (
        ([5, 6, 7], [5, 6, 7, 8]),
        ([5, 6, 7], [5, 9, 7, 8]),
        ([5, 6, 7], [4, 6, 7, 8]),
        ([], [3]),
        ([5, 6, 7], [5, 6, 9, 8]),
    ):
        same = [a == b for a, b in zip(drafts, own)]
        right = own[: (same.index(False) if False in same else len(drafts)) + 1]
        got = call(f, drafts, own)
        if isinstance(got, Sequence) and list(got) == right:
            continue
        about = f"drafts {drafts}, the target's choices {own}: {got} is not it. "
        if isinstance(got, Sequence) and list(got) == right[:-1]:
            raise Wrong(about + "The target has made one more choice that stands on nothing but agreed tokens.")
        if isinstance(got, Sequence) and len(got) > len(right):
            raise Wrong(about + "What was chosen behind a draft that is wrong was chosen after a wrong history.")
        raise Wrong(about + "Which of the target's choices stand on a history that is right?")
    return "Right. At least one token, at most k + 1, and each is the target's own."


def expected(answer: Any) -> str:
    """09-b: tokens per verification on average, if each draft agrees with probability a while those before it did."""
    f = function(answer)
    for a, k in ((0.8, 1), (0.8, 4), (0.5, 3), (0.0, 5), (1.0, 5)):
        right = sum(a**i for i in range(k + 1))
        got = number(call(f, a, k))
        if abs(got - right) < 1e-6:
            continue
        about = f"a = {a}, k = {k}: {got:g} is not it. "
        if abs(got - right + 1) < 1e-6:
            raise Wrong(about + "Even if no draft agrees the step brings a token.")
        if abs(got - (1 + a * k)) < 1e-6:
            raise Wrong(about + "The third draft only counts if the first two agreed.")
        raise Wrong(about + "With what probability does a step bring at least i + 1 tokens? Add these up.")
    return "Right: 1 + a + a² + … + aᵏ. Past a few drafts the next one hardly ever counts, and always costs."


CHECKS: dict[str, Callable[[Any], str]] = {"08-a": choose, "08-b": keep_top_p, "09-a": accepted, "09-b": expected}
