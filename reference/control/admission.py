"""Admission: the last check before a request enters the scheduler, and the first place that knows all the limits.

What passes here can run to its end: its prompt fits the model, and alone it fits the KV cache. That is what the
scheduler's promise, that every accepted request ends, rests on.
"""

from __future__ import annotations

from collections.abc import Container

from quire.reference.control.config import SchedulerConfig
from quire.reference.control.errors import RequestError
from quire.reference.control.params import MAX_LOGPROBS, BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from quire.reference.control.request import Request
from quire.reference.control.sequence import Group


def check(prompt_len: int, params: RequestParams, config: SchedulerConfig) -> None:
    """Raise RequestError if such a request could never run to its end; it names the first thing that is wrong."""
    max_model_len = config.max_model_len
    if prompt_len == 0:
        raise RequestError("prompt_token_ids", [], "the prompt is empty", "Give at least one token")
    if isinstance(params, PoolingParams):
        _check_pooled(prompt_len, config)
        return
    if prompt_len >= max_model_len:
        raise RequestError(
            "prompt_token_ids",
            f"{prompt_len} tokens",
            f"with max_model_len={max_model_len} there is no room for an output token",
            f"Shorten the prompt to {max_model_len - 1} tokens, or raise max_model_len if the model can take it",
        )
    if isinstance(params, BeamSearchParams):
        field, width, at_once = "beam_width", params.beam_width, params.beam_width  # beams wait for each other
    else:
        field = "n" if params.best_of is None else "best_of"
        width, at_once = params.num_sequences, 1  # parallel samples may take turns
    if width > config.max_num_seqs:
        raise RequestError(
            field,
            width,
            f"more sequences than the engine runs at once (max_num_seqs={config.max_num_seqs})",
            f"Lower {field} or start the engine with max_num_seqs={width}",
        )
    max_len = longest(prompt_len, params, config)
    # What has to be in the cache at the same time must fit. A sequence's last token is never read: it needs no slot.
    capacity = (config.num_blocks - 1) // at_once * config.block_size
    if max_len - 1 > capacity:
        room = capacity + 1 - prompt_len
        raise RequestError(
            "max_tokens",
            params.max_tokens,
            f"a prompt of {prompt_len} tokens and {max_len - prompt_len} output tokens"
            + (f" for each of {at_once} beams" if at_once > 1 else "")
            + f" do not fit into {config.num_blocks - 1} KV blocks of {config.block_size} tokens",
            f"Lower max_tokens to {room} or raise the KV cache's size" if room > 0 else "Raise the KV cache's size",
        )


def _check_pooled(prompt_len: int, config: SchedulerConfig) -> None:
    capacity = (config.num_blocks - 1) * config.block_size
    limit = min(config.max_model_len, capacity)
    if prompt_len > limit:
        problem = (
            f"longer than max_model_len={limit}"
            if limit == config.max_model_len
            else f"does not fit into {config.num_blocks - 1} KV blocks of {config.block_size} tokens"
        )
        raise RequestError("prompt_token_ids", f"{prompt_len} tokens", problem, f"Shorten the prompt to {limit} tokens")


def longest(prompt_len: int, params: RequestParams, config: SchedulerConfig) -> int:
    """Tokens of a sequence at most, prompt included. An embedding counts as one."""
    if isinstance(params, PoolingParams):
        return prompt_len + 1
    if params.max_tokens is None:
        return config.max_model_len
    return min(prompt_len + params.max_tokens, config.max_model_len)


def new_group(request: Request, config: SchedulerConfig, known_ids: Container[str], arrival: int) -> Group:
    """A checked request, ready to be scheduled."""
    params, prompt_len = request.params, len(request.prompt_token_ids)
    if request.request_id in known_ids:
        raise RequestError("request_id", request.request_id, "already in use", "Give each request an id of its own")
    check(prompt_len, params, config)
    stop_ids: tuple[int, ...] = ()
    if not isinstance(params, PoolingParams):
        stop_ids = (*(() if params.ignore_eos else request.eos_token_ids), *(params.stop_token_ids or ()))
    group = Group(request, arrival, longest(prompt_len, params, config), _sequence_params(params, stop_ids), stop_ids)
    if isinstance(params, SamplingParams):
        group.num_unforked = params.num_sequences - 1
        if params.prompt_logprobs is not None:
            group.prompt_logprobs = [None] * prompt_len
    return group


def _sequence_params(params: RequestParams, stop_ids: tuple[int, ...]) -> SamplingParams | PoolingParams:
    """What the runner is told: a beam asks for its likeliest next tokens, which the host then chooses among."""
    if not isinstance(params, BeamSearchParams):
        return params
    count = min(params.beam_width + max(params.beam_width, len(set(stop_ids))), MAX_LOGPROBS)
    return SamplingParams(temperature=0.0, max_tokens=params.max_tokens, logprobs=count)
