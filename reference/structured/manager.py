"""What the engine knows of structured outputs: requests that wait for their grammar, and the masks of a step.

Compiling is done in a thread, and the request is held back meanwhile, so that nobody else waits for it: not the engine
for a large schema, and not its neighbours. What has been compiled lately is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import StepPlan
from quire.reference.control.request import Event, Request
from quire.reference.control.sequence import Sequence
from quire.reference.structured.compiler import Compiler
from quire.reference.structured.matchers import Mask, Matchers, NoToken

if TYPE_CHECKING:
    from llguidance import LLMatcher


class StructuredOutputs:
    """The structured requests of one engine.

    tokenizer                   returns the model's (transformers', a fast one), when first needed; None: there is none
    vocab_size, eos_token_ids   of the model
    """

    def __init__(self, tokenizer: Callable[[], Any] | None, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self.compiler = Compiler(tokenizer)
        self.waiting: dict[str, tuple[Request, Future[LLMatcher]]] = {}
        self._matchers = Matchers(vocab_size, eos_token_ids)

    def hold(self, request: Request) -> bool:
        """Take notice of a new request. True if it has to wait until its grammar is compiled."""
        params = request.params.structured_outputs if isinstance(request.params, SamplingParams) else None
        if params is None:
            return False
        grammar = self.compiler.find(params)
        if grammar is None:
            self.waiting[request.request_id] = request, self.compiler.submit(params)
            return True
        self._matchers.add(request.request_id, grammar)
        return False

    def released(self, timeout: float | None) -> tuple[list[Request], list[Event]]:
        """Those that need not wait any longer, and the ends of those whose grammar is none.

        With a ``timeout`` it waits so many seconds for the first one.
        """
        if timeout is not None:
            wait([future for _, future in self.waiting.values()], timeout, FIRST_COMPLETED)
        requests: list[Request] = []
        events: list[Event] = []
        for request, future in [entry for entry in self.waiting.values() if entry[1].done()]:
            del self.waiting[request.request_id]
            error = future.exception()
            if error is None:
                self._matchers.add(request.request_id, future.result())
                requests.append(request)
            else:
                events += ends(request, "error", str(error))
        return requests, events

    def abort(self, request_id: str) -> list[Event]:
        """The ends of a request that was waiting; none if it was not."""
        if request_id not in self.waiting:
            return []
        request, future = self.waiting.pop(request_id)
        future.cancel()
        return ends(request, "abort", None)

    def masked(self, plan: StepPlan, sequences: Mapping[int, Sequence]) -> dict[int, Sequence]:
        """Index in plan.seqs -> sequence, of those that sample by a grammar."""
        if not len(self._matchers):
            return {}
        found = ((i, sequences.get(s.seq_id)) for i, s in enumerate(plan.seqs) if s.samples)
        return {i: seq for i, seq in found if seq is not None and seq.group.request.request_id in self._matchers}

    def masks(self, masked: Mapping[int, Sequence]) -> tuple[dict[int, Mask], list[tuple[Sequence, NoToken]]]:
        """The masks, and the sequences for which there is none: they are at their end.

        A sequence with drafts in this step gets several, see ``Matchers.masks``.
        """
        masks: dict[int, Mask] = {}
        ended: list[tuple[Sequence, NoToken]] = []
        for i, seq in masked.items():
            mask = self._matchers.masks(seq) if seq.drafts else self._matchers.mask(seq)
            if isinstance(mask, NoToken):
                ended.append((seq, mask))
                form = seq.sampling.structured_outputs
                if mask.problem is not None and form is not None:
                    self.compiler.forget(form)
            else:
                masks[i] = mask
        return masks, ended

    def take(self, events: Iterable[Event], alive: Mapping[str, object]) -> None:
        """Follow what a step brought. Requests that are not ``alive`` any more are forgotten."""
        if not len(self._matchers):
            return
        for event in events:
            self._matchers.take(event)
            if event.finish_reason is not None:
                self.forget(event.request_id, alive)

    def forget(self, request_id: str, alive: Mapping[str, object]) -> None:
        """Let go of a request's matchers if it is not ``alive`` any more."""
        if request_id not in alive:
            self._matchers.drop(request_id)

    def close(self) -> None:
        self.compiler.close()


def ends(request: Request, reason: Any, error: str | None) -> list[Event]:
    """The last events of a request that never started."""
    assert isinstance(request.params, SamplingParams)
    count = request.params.num_sequences
    return [Event(request.request_id, index, [], finish_reason=reason, error=error) for index in range(count)]
