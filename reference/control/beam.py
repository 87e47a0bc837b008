"""Beam search, one step of it, as a pure function on the host.

The engine runs every live beam one token further and asks for the likeliest next tokens of each. Among all these
continuations the best are chosen: the ``width`` best that do not end live on, and those that end go to the finished
hypotheses if they are among the 2·width best. A beam chosen twice is forked (its blocks are shared until somebody
writes), a beam not chosen ends. With S stop tokens, width + max(width, S) candidates per beam are enough: ``width`` of
them do not end, whatever the others are.
"""

from __future__ import annotations

import math

from quire.reference.control.params import BeamSearchParams
from quire.reference.control.request import Beam
from quire.reference.control.sequence import Sequence


def score(cumulative_logprob: float, length: int, length_penalty: float) -> float:
    """Rank of a hypothesis of ``length`` output tokens: log-probability per length ** penalty (Wu et al., 2016)."""
    return cumulative_logprob / math.pow(length, length_penalty)


def advance(beams: list[Sequence], params: BeamSearchParams, completed: list[Beam]) -> bool:
    """Choose the continuations of one step. Sets ``choices`` on each beam, adds to ``completed``; True if all is over.

    Every beam must have its ``candidates``; ties go to the earlier beam, then to the likelier candidate's order.
    """
    first = beams[0]
    num_outputs = len(first.tokens) + 1 - first.prompt_len
    continuations = [
        (beam.cumulative_logprob + logprob, beam, token)
        for beam in beams
        if beam.candidates is not None
        for token, logprob in zip(beam.candidates.token_ids[1:], beam.candidates.logprobs[1:], strict=True)
    ]  # entry 0 is what the sampler took; the candidates follow
    continuations.sort(key=lambda c: -c[0])

    for beam in beams:
        beam.candidates, beam.choices = None, []
    num_live = 0
    last = len(first.tokens) + 1 >= first.max_len
    for rank, (total, beam, token) in enumerate(continuations):
        among_best = rank < 2 * params.beam_width
        if not among_best and num_live == params.beam_width:
            break
        ends = token in beam.stop_ids
        if ends or last:
            output = [*beam.tokens[beam.prompt_len :], token]
            if among_best if ends else num_live < params.beam_width:
                completed.append(Beam(output, total, "stop" if ends else "length"))
                num_live += not ends
        elif num_live < params.beam_width:
            beam.choices.append((token, total))
            num_live += 1

    completed.sort(key=lambda b: -score(b.cumulative_logprob, len(b.token_ids), params.length_penalty))
    del completed[params.beam_width :]
    if last or num_live == 0:
        return True
    if len(completed) < params.beam_width:
        return False
    # Log-probabilities only fall, so no descendant of a live beam can score better than its total at the length that
    # flatters it most. If that is no better than the worst finished hypothesis, nothing can change any more.
    best_live = max(total for beam in beams for _, total in beam.choices)
    longest = first.max_len - first.prompt_len if params.length_penalty > 0 else num_outputs + 1
    worst = completed[-1]
    return score(best_live, longest, params.length_penalty) <= score(
        worst.cumulative_logprob, len(worst.token_ids), params.length_penalty
    )
