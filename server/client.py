"""An API process's line to the engine: requests go out, their outputs come in, as text.

``add`` a request and iterate over the ``Generation`` it returns. Text is made here (detokenizing, stop strings), so
that the engine's process does nothing but steps. A reader that is slower than the engine does not hold anything up:
outputs that it has not fetched yet are merged into one, which is all that ever waits for it.

All methods are called in the event loop's thread. The socket is read from a callback of the loop, without tasks or
futures in between: one message brings the news of a whole step.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Literal

import zmq
import zmq.utils.monitor

from quire.assets import Assets
from quire.reference.control.checks import MAX_INT, integer
from quire.reference.control.params import BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from quire.reference.control.request import Event, SchedulerStats
from quire.reference.engine import ModelFacts, check_prompt
from quire.reference.output_processor import OutputProcessor, Processed
from quire.reference.outputs import RequestMetrics, RequestOutput
from quire.server import messages
from quire.server.trace_listeners import TraceListeners

logger = logging.getLogger("quire.client")

State = Literal["starting", "ready", "dead"]


class EngineUnavailable(RuntimeError):
    """The engine is not there, or died while the request ran. The message says which; the client may try again."""


class RequestTimeout(RuntimeError):
    """The request took longer than the server allows. It has been aborted."""


class Generation:
    """One request in the engine. Iterate for its ``RequestOutput``s; ``abort`` (or leave ``with``) when not wanted.

    With ``stream`` each output holds what is new; else there is a single one. Raises ``EngineUnavailable`` or
    ``RequestTimeout`` in place of an output. ``metrics`` tells at any time how far it has got.
    """

    def __init__(self, request_id: str, metrics: RequestMetrics, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.metrics = metrics
        self._abort = abort
        self._waiting: RequestOutput | None = None  # not fetched yet
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._done = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done and self._waiting is None:
            raise StopAsyncIteration
        if not self._news.is_set():
            try:
                await self._news.wait()
            except asyncio.CancelledError:
                self.abort()
                raise
        self._news.clear()
        output, self._waiting = self._waiting, None
        if output is not None:
            if self._error is not None:
                self._news.set()  # next time
            return output
        assert self._error is not None
        error, self._error, self._done = self._error, None, True
        raise error

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def abort(self) -> None:
        """End the request wherever it is; nothing happens if it has ended."""
        if not self._done:
            self._done, self._waiting = True, None
            self._abort(self.request_id)

    def put(self, output: RequestOutput) -> None:
        """New output from the engine."""
        self._waiting = output if self._waiting is None else merged(self._waiting, output)
        self._done = output.finished
        self._news.set()

    def fail(self, error: Exception) -> None:
        """The request has ended otherwise; what is here can still be fetched."""
        self._error = error
        self._news.set()


def merged(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two outputs of a stream as one: increments of the same completion are joined."""
    by_index = {c.index: c for c in first.outputs}
    for new in second.outputs:
        old = by_index.get(new.index)
        if old is not None:
            new.text = old.text + new.text
            new.token_ids = [*old.token_ids, *new.token_ids]
            new.drafted = [*old.drafted, *new.drafted]
            if new.logprobs is not None:
                new.logprobs = [*(old.logprobs or ()), *new.logprobs]
        by_index[new.index] = new
    second.outputs = [by_index[i] for i in sorted(by_index)]
    return second


class EngineClient:
    """The engine as an API process sees it.

    state    "starting" until the engine answers, then "ready"; "dead" from the moment it is lost until it is back
    model    what is known of the engine's model; None before it was first ready
    stats    the scheduler's latest snapshot
    reason   why the state is not "ready", for people
    traces   who listens to the trace of its steps
    observe  called with what each message of the engine came to, and with requests that were cut off (for metrics)
    """

    def __init__(self, address: str, assets: Assets, *, name: str = "api-0") -> None:
        self.assets = assets
        self.state: State = "starting"
        self.reason = "the engine is starting"
        self.model: ModelFacts | None = None
        self.stats = SchedulerStats()
        self.observe: Callable[[Processed], None] = lambda processed: None
        self._address = address
        self._name = name
        self._engine_id = ""
        self._processor = OutputProcessor(assets.tokenizer)
        self._open: dict[str, Generation] = {}
        self._admissions: dict[str, asyncio.Future[None]] = {}
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._num_calls = 0
        self.traces = TraceListeners(self._send)
        self._changed = asyncio.Event()  # state
        self._started = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, now and whenever the engine comes back, from a running event loop. Does nothing if it has been done.

        Does not wait for the engine: see ``wait_until_ready``.
        """
        if self._started:
            return
        self._started = True
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self._name.encode())
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.LINGER, 100)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(events)
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.add_reader(self._monitor.fileno(), self._read_monitor)
        self._socket.connect(self._address)
        self._read_monitor()  # a file descriptor of ZeroMQ signals changes from when one has last looked

    def close(self) -> None:
        """Fail what is open and let go of the socket."""
        if not self._started:
            return
        self._started = False
        self._set_state("dead", "the server is shutting down")
        self.traces.close()
        self._fail_open(self.reason)
        self._loop.remove_reader(self._monitor.fileno())
        self._loop.remove_reader(self._socket.fileno())
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()

    async def wait_until_ready(self, timeout: float | None = None) -> None:
        """Return when the engine serves. Raises ``asyncio.TimeoutError``."""

        async def ready() -> None:
            while self.state != "ready":
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(ready(), timeout)

    def facts(self) -> ModelFacts:
        """What is known of the engine's model. Raises ``EngineUnavailable`` until the engine was first ready."""
        if self.model is None:
            raise EngineUnavailable(self.reason)
        return self.model

    @property
    def num_open(self) -> int:
        """Requests in the engine or on their way."""
        return len(self._open)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def add(
        self,
        prompt_token_ids: list[int],
        params: RequestParams,
        *,
        request_id: str | None = None,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 0,
        cache_salt: str | None = None,
        timeout: float | None = None,
    ) -> Generation:
        """Hand a request to the engine and return once it is admitted.

        prompt   its text, to be repeated in the outputs
        stream   outputs of what is new as it comes; else one output at the end
        timeout  seconds until ``RequestTimeout``, from now

        Raises ``RequestError`` if the engine refuses it, ``EngineUnavailable`` if there is no engine.
        """
        if self.state != "ready":
            raise EngineUnavailable(self.reason)
        # Now, because what is no token cannot be detokenized, and what has more than 64 bits cannot be sent.
        check_prompt(prompt_token_ids, self.facts())
        integer("priority", priority, -MAX_INT)
        request_id = request_id or uuid.uuid4().hex
        metrics = self._processor.add(request_id, prompt_token_ids, params, prompt=prompt, stream=stream)
        generation = Generation(request_id, metrics, self._abort)
        admitted = self._loop.create_future()
        self._open[request_id] = generation
        self._admissions[request_id] = admitted
        if timeout is not None:
            self._timers[request_id] = self._loop.call_later(timeout, self._time_out, request_id, timeout)
        self._send(
            messages.Add(
                self._engine_id,
                request_id,
                prompt_token_ids,
                sampling=params if isinstance(params, SamplingParams) else None,
                beam=params if isinstance(params, BeamSearchParams) else None,
                pooling=params if isinstance(params, PoolingParams) else None,
                priority=priority,
                cache_salt=cache_salt,
            )
        )
        try:
            await admitted
        except BaseException:
            generation.abort()
            raise
        return generation

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; returns when it is done."""
        if self.state != "ready":
            raise EngineUnavailable(self.reason)
        self._num_calls += 1
        done = self._calls[self._num_calls] = self._loop.create_future()
        self._send(messages.Call(self._num_calls, "reset_prefix_cache"))
        await done

    def _abort(self, request_id: str) -> None:
        self._cut_off(request_id, "abort")
        if self._forget(request_id) and self.state == "ready":
            self._send(messages.Abort(request_id))

    def _time_out(self, request_id: str, seconds: float) -> None:
        error = RequestTimeout(f"the request took longer than the {seconds:g} s that this server allows")
        self._end(request_id, error)
        self._abort(request_id)

    def _end(self, request_id: str, error: Exception) -> None:
        """Tell whoever waits for the request's admission or output that there will be none."""
        admitted = self._admissions.get(request_id)
        if admitted is not None and not admitted.done():
            admitted.set_exception(error)
        self._open[request_id].fail(error)

    def _cut_off(self, request_id: str, reason: str) -> None:
        metrics = self._processor.discard(request_id, reason)
        if metrics is not None:
            self.observe(Processed(ended=[metrics]))

    def _forget(self, request_id: str) -> bool:
        self._processor.discard(request_id)
        self._admissions.pop(request_id, None)
        timer = self._timers.pop(request_id, None)
        if timer is not None:
            timer.cancel()
        return self._open.pop(request_id, None) is not None

    # --- the socket ---------------------------------------------------------------------------------------------------

    def _send(self, message: messages.ToEngine) -> None:
        """Send, without ever waiting. What is sent to an engine that has just died its successor ignores."""
        self._socket.send(messages.encode(message), zmq.NOBLOCK)
        # ZeroMQ signals its file descriptor on edges only, and sending may have swallowed one.
        if self._socket.poll(0):
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Take in every message that has come."""
        while not self._socket.closed:
            try:
                payload = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._handle(messages.decode_to_api(payload))

    def _read_monitor(self) -> None:
        while not self._monitor.closed and self._monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._send(messages.Hello())
            elif event == zmq.EVENT_DISCONNECTED and self.state != "starting":
                self._read()  # its last words
                self._lose("the engine's process has ended" if self.state == "ready" else self.reason)

    def _handle(self, message: messages.ToApi) -> None:
        match message:
            case messages.Events(events, stats):
                if events:
                    self._take(events)
                if stats is not None:
                    self.stats = stats
            case messages.Accepted(request_id):
                admitted = self._admissions.pop(request_id, None)
                if admitted is not None and not admitted.done():
                    admitted.set_result(None)
            case messages.Refused(request_id):
                if request_id in self._open:
                    self._end(request_id, message.error())
                    self._forget(request_id)
            case messages.Ready(engine_id, model, stats):
                self._engine_id, self.model, self.stats = engine_id, model, stats
                self._set_state("ready", "")
                self.traces.engine_ready()
            case messages.Reply(call_id):
                self._calls.pop(call_id).set_result(None)
            case messages.TraceBegin(listener, lines):
                self.traces.begin(listener, lines)
            case messages.TraceLine(line, missed):
                self.traces.put(line, missed)
            case messages.Failed(reason, fatal):
                if fatal:
                    self._lose(reason)
                else:
                    self._fail_open(reason)

    def _take(self, events: list[Event]) -> None:
        """Turn events into outputs for those who wait for them."""
        done = self._processor.process(events)
        self.observe(done)
        for request_id, index in done.stopped:
            self._send(messages.Finish(request_id, index))
        for output in done.outputs:
            generation = self._open.get(output.request_id)
            if generation is not None:
                if output.finished:
                    self._forget(output.request_id)
                generation.put(output)

    # --- loss ---------------------------------------------------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        """The engine is gone: every open request ends with an error, now."""
        if self.state != "dead":
            logger.error("engine lost: %s (%d requests were open)", reason, len(self._open))
        self._set_state("dead", reason)
        self.traces.engine_lost(reason)
        self._fail_open(reason)

    def _fail_open(self, reason: str) -> None:
        error = EngineUnavailable(reason)
        for request_id in list(self._open):
            self._end(request_id, error)
            self._cut_off(request_id, "error")
            self._forget(request_id)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
        self._calls.clear()

    def _set_state(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._changed.set()
