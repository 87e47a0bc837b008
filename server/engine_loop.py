"""The engine's loop: requests in over ZeroMQ, steps, events out. It runs in a process of its own, or in a thread.

One ROUTER socket serves every API process. Between two steps the loop takes in all messages that wait, so an abort
frees its blocks before the next step is planned. Nothing here ever waits for a reader: what an API process does not
take at once is kept in its outbox, and a process that lets that grow beyond a limit loses its requests.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from dataclasses import dataclass, field

import zmq

from quire.reference.control.errors import RequestError
from quire.reference.control.request import Event
from quire.reference.engine import Engine, EngineError
from quire.server import messages
from quire.server.trace_feed import TraceFeed

logger = logging.getLogger("quire.engine")

STATS_EVERY = 0.1  # seconds between two snapshots while the engine runs: one walks over the running sequences
OUTBOX_LIMIT = 10_000  # messages an API process may leave unread, about one per step


@dataclass
class Peer:
    """One API process: its open requests, and what it has not read yet."""

    requests: set[str] = field(default_factory=set)
    outbox: deque[bytes] = field(default_factory=deque)


class EngineLoop:
    """Serve ``engine`` at a ZeroMQ ``address`` until ``stop`` is called (from any thread or signal handler)."""

    def __init__(self, engine: Engine, address: str) -> None:
        self.engine = engine
        self.engine_id = uuid.uuid4().hex
        self._peers: dict[bytes, Peer] = {}
        self._owner: dict[str, bytes] = {}  # request id -> the API process it came from
        self._stats_sent = 0.0
        self._was_idle = True
        self._stopping = False
        self._trace = TraceFeed(engine, self._send, self._unread)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a process that is gone is an error, not silence
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted API process takes over its name
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(address)

    def stop(self) -> None:
        self._stopping = True

    def run(self) -> None:
        """Loop until stopped. Raises ``EngineError`` when a step fails, after every API process was told."""
        try:
            while not self._stopping:
                busy = self.engine.has_unfinished()
                backlog = any(peer.outbox for peer in self._peers.values())
                self._receive(timeout_ms=0 if busy else 10 if backlog else 200)
                events = self.engine.step() if self.engine.has_unfinished() else []
                # First: whoever hears that a request has ended finds it in the statistics.
                self._publish_stats(idle=not self.engine.has_unfinished())
                self._deliver(events)
                self._flush()
                self._trace.catch_up()
        except EngineError as error:
            logger.exception("the engine failed")
            for identity in list(self._peers):
                self._send(identity, messages.Failed(str(error), fatal=True))
            raise
        finally:
            self._socket.close()
            self.engine.close()

    # --- in -----------------------------------------------------------------------------------------------------------

    def _receive(self, timeout_ms: int) -> None:
        """Take in every message that waits; wait for the first one up to ``timeout_ms``."""
        if timeout_ms and not self._socket.poll(timeout_ms):
            return
        while True:
            try:
                identity, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._handle(identity, messages.decode_to_engine(payload))

    def _handle(self, identity: bytes, message: messages.ToEngine) -> None:
        match message:
            case messages.Add():
                self._add(identity, message)
            case messages.Abort(request_id):
                self.engine.abort_request(request_id)
                self._forget(request_id)
            case messages.Finish(request_id, index):
                self.engine.finish(request_id, index)
                if not self.engine.has_request(request_id):
                    self._forget(request_id)
            case messages.Hello():
                self._drop(identity)
                self._peers[identity] = Peer()
                self._send(identity, messages.Ready(self.engine_id, self.engine.model, self.engine.stats()))
            case messages.Listen(listener, text):
                if identity in self._peers:
                    self._trace.listen(identity, listener, text)
            case messages.Unlisten():
                self._trace.leave(identity)
            case messages.Call(call_id):
                self.engine.reset_prefix_cache()
                self._send(identity, messages.Reply(call_id))

    def _add(self, identity: bytes, message: messages.Add) -> None:
        if message.engine_id != self.engine_id or identity not in self._peers:
            return  # meant for a predecessor; its API process has already ended the request with an error
        params = message.sampling or message.beam or message.pooling
        try:
            if params is None:
                raise RequestError("params", None, "none were sent", "Send parameters of one kind")
            self.engine.add_request(
                message.prompt_token_ids,
                params,
                request_id=message.request_id,
                priority=message.priority,
                cache_salt=message.cache_salt,
            )
        except RequestError as error:
            self._send(identity, messages.Refused.of(message.request_id, error))
            return
        self._owner[message.request_id] = identity
        self._peers[identity].requests.add(message.request_id)
        self._send(identity, messages.Accepted(message.request_id))

    # --- out ----------------------------------------------------------------------------------------------------------

    def _deliver(self, events: list[Event]) -> None:
        """Send each API process the events of its own requests."""
        by_peer: dict[bytes, list[Event]] = {}
        for event in events:
            identity = self._owner.get(event.request_id)
            if identity is not None:
                by_peer.setdefault(identity, []).append(event)
        for identity, own in by_peer.items():
            self._send(identity, messages.Events(own))
        for event in events:
            if event.finish_reason is not None and not self.engine.has_request(event.request_id):
                self._forget(event.request_id)

    def _publish_stats(self, *, idle: bool) -> None:
        """Tell every API process how the engine stands: when it is time, and once when the engine falls idle."""
        now = time.monotonic()
        due = not self._was_idle if idle else now - self._stats_sent >= STATS_EVERY
        self._was_idle = idle
        if not due:
            return
        self._stats_sent = now
        stats = self.engine.stats()
        for identity in list(self._peers):
            self._send(identity, messages.Events([], stats))

    def _forget(self, request_id: str) -> None:
        identity = self._owner.pop(request_id, None)
        if identity in self._peers:
            self._peers[identity].requests.discard(request_id)

    def _send(self, identity: bytes, message: messages.ToApi) -> None:
        """Queue a message behind those that wait, and send what can be sent."""
        peer = self._peers.get(identity)
        if peer is None:
            return
        peer.outbox.append(messages.encode(message))
        self._empty_outbox(identity, peer)
        if len(peer.outbox) > OUTBOX_LIMIT:
            logger.error("API process %s leaves %d messages unread: its requests end", identity, OUTBOX_LIMIT)
            self._drop(identity)
            lost = messages.Failed("this API process did not read its results for too long", fatal=False)
            self._peers[identity] = Peer(outbox=deque([messages.encode(lost)]))

    def _unread(self, identity: bytes) -> int:
        """Messages that an API process has not taken yet."""
        peer = self._peers.get(identity)
        return 0 if peer is None else len(peer.outbox)

    def _flush(self) -> None:
        for identity, peer in list(self._peers.items()):
            if peer.outbox:
                self._empty_outbox(identity, peer)

    def _empty_outbox(self, identity: bytes, peer: Peer) -> None:
        try:
            while peer.outbox:
                self._socket.send_multipart([identity, peer.outbox[0]], zmq.NOBLOCK)
                peer.outbox.popleft()
        except zmq.Again:
            pass  # it reads slowly; later
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            logger.warning("API process %s is gone: its %d requests end", identity.decode(), len(peer.requests))
            self._drop(identity)

    def _drop(self, identity: bytes) -> None:
        """Forget an API process and abort its requests."""
        self._trace.leave(identity)
        peer = self._peers.pop(identity, None)
        for request_id in peer.requests if peer else ():
            self.engine.abort_request(request_id)
            del self._owner[request_id]
