"""The line between an API process and the engine: outputs, refusals, aborts, slow readers, and the engine's death."""

from __future__ import annotations

import asyncio
import threading

import pytest

from quire.reference.config import EngineConfig
from quire.reference.control.errors import RequestError
from quire.reference.control.params import SamplingParams
from quire.server.client import EngineClient, EngineUnavailable, Generation, RequestTimeout
from quire.server.local import LocalEngine
from tests.reference.ghost import GhostRunner, ghost_engine, hashed
from tests.server.conftest import PATIENCE


def local(**settings) -> LocalEngine:
    """A ghost engine behind the tokenizer of the embedded model."""
    return LocalEngine(EngineConfig(), engine=ghost_engine(GhostRunner(**settings)))


def expected(prompt: list[int], n: int, vocab_size: int = 100) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(hashed(tokens, 0, vocab_size))
    return tokens[len(prompt) :]


async def connected(engine: LocalEngine) -> EngineClient:
    engine.client.start()
    await engine.client.wait_until_ready(PATIENCE)
    return engine.client


async def tokens_of(generation: Generation) -> list[int]:
    return [token async for output in generation for token in output.outputs[0].token_ids]


def test_a_stream_brings_every_token_in_order() -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)
        prompts = [[1 + i, 2, 3] for i in range(20)]
        params = SamplingParams(max_tokens=30)
        generations = [await client.add(p, params, stream=i % 2 == 0) for i, p in enumerate(prompts)]
        got = await asyncio.gather(*map(tokens_of, generations))
        assert got == [expected(p, 30) for p in prompts]
        assert client.num_open == 0
        client.close()

    with local() as engine:
        asyncio.run(main(engine))
        assert engine.engine.stats().blocks_used == 0


def test_a_reader_that_comes_late_gets_everything_at_once() -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)
        late = await client.add([1, 2, 3], SamplingParams(max_tokens=40), stream=True)
        other = await client.add([4], SamplingParams(max_tokens=50))
        await tokens_of(other)  # by now the first one has ended, unread
        outputs = [output async for output in late]
        assert len(outputs) == 1 and outputs[0].finished
        assert outputs[0].outputs[0].token_ids == expected([1, 2, 3], 40)
        client.close()

    with local() as engine:
        asyncio.run(main(engine))


def test_a_refused_request_says_what_is_wrong_and_harms_nobody() -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)
        with pytest.raises(RequestError, match="max_model_len") as caught:
            await client.add(list(range(70)), SamplingParams())
        assert caught.value.field == "prompt_token_ids"
        with pytest.raises(RequestError, match="no token of this model"):
            await client.add([1000], SamplingParams())
        assert await tokens_of(await client.add([1], SamplingParams(max_tokens=4))) == expected([1], 4)
        client.close()

    with local() as engine:
        asyncio.run(main(engine))


def test_an_aborted_request_frees_its_blocks() -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)
        for _ in range(3):
            with await client.add([1, 2, 3], SamplingParams(max_tokens=50), stream=True) as generation:
                await generation.__anext__()
        await client.reset_prefix_cache()  # answered after the aborts
        assert not engine.engine.has_unfinished() and engine.engine.stats().blocks_used == 0
        client.close()

    with local() as engine:
        asyncio.run(main(engine))


def test_a_request_that_takes_too_long_is_ended() -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)
        go_on, step = threading.Event(), engine.engine.step
        engine.engine.step = lambda: go_on.wait() and step()
        with pytest.raises(RequestTimeout):
            await tokens_of(await client.add([1], SamplingParams(max_tokens=60), stream=True, timeout=0.01))
        go_on.set()
        await client.reset_prefix_cache()
        assert not engine.engine.has_unfinished()
        client.close()

    with local() as engine:
        asyncio.run(main(engine))


def test_when_a_step_fails_every_open_request_hears_of_it(caplog) -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)

        async def ask(i: int) -> None:
            await tokens_of(await client.add([i], SamplingParams(max_tokens=60), stream=True))

        for outcome in await asyncio.gather(*map(ask, range(4)), return_exceptions=True):
            assert isinstance(outcome, EngineUnavailable) and "told to fail" in str(outcome)
        assert client.state == "dead" and "told to fail" in client.reason
        with pytest.raises(EngineUnavailable):
            await client.add([1], SamplingParams())
        client.close()

    with local(fail_at=40) as engine:
        asyncio.run(main(engine))


def test_without_an_engine_requests_are_turned_away() -> None:
    async def main(engine: LocalEngine) -> None:
        engine.client.start()
        with pytest.raises(EngineUnavailable, match="starting"):
            await engine.client.add([1], SamplingParams())
        engine.client.close()

    with local() as engine:
        asyncio.run(main(engine))


def test_an_api_process_that_vanishes_loses_its_requests_and_a_new_one_takes_its_place() -> None:
    async def main(engine: LocalEngine) -> None:
        client = await connected(engine)
        await client.add([1], SamplingParams(max_tokens=60), stream=True)
        client._started = False  # as if it had been killed: nothing is said to the engine
        client._loop.remove_reader(client._monitor.fileno())
        client._loop.remove_reader(client._socket.fileno())
        client._socket.disable_monitor()
        client._socket.close()
        again = EngineClient(engine.address, client.assets)
        again.start()
        await again.wait_until_ready(PATIENCE)
        assert await tokens_of(await again.add([7], SamplingParams(max_tokens=5))) == expected([7], 5)
        assert not engine.engine.has_unfinished()
        again.close()

    with local() as engine:
        asyncio.run(main(engine))
