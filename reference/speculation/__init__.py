"""Speculative decoding: who proposes drafts. Verification is a part of sampling, their number of control.

    proposer.py      the interface: what a proposer is shown, and what it offers
    config.py        ``SpeculativeConfig``: what a user may set
    ngram.py         prompt lookup: what followed the last time these tokens stood in the request
    suffix.py        the same over the outputs of recent requests as well
    draft_model.py   a small model with a KV cache of its own in the same blocks

A proposer cannot change a text, only how fast it comes: the target chooses every token itself, from the history that
stands so far, with that position's own noise (``quire.reference.sampling.verification``).

Sources: Stern et al. 2018 (blockwise parallel decoding), Leviathan et al. 2022 (2211.17192), Chen et al. 2023
(2302.01318); prompt lookup: Saxena 2023; suffix lookup: Oliaro et al. 2024 (2411.04975).
"""
