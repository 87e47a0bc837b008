"""What the middleware refuses, and that whatever it answers carries an id and, for browsers, the headers of CORS."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.server.conftest import PATIENCE
from tests.server.toy_app import http, toy_app


def run(coroutine) -> None:
    asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def refused(response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["X-Request-Id"]


# --- bodies ----------------------------------------------------------------------------------------------------------


async def chunks(*sizes: int):
    for size in sizes:
        yield b"x" * size


def test_a_body_up_to_the_limit_arrives_whole() -> None:
    async def main() -> None:
        async with http(toy_app(max_body_size=100)) as client:
            assert (await client.post("/length", content=b"x" * 100)).json() == 100
            assert (await client.post("/length", content=chunks(40, 0, 60))).json() == 100
            assert (await client.post("/length")).json() == 0

    run(main())


def test_a_longer_body_is_refused() -> None:
    async def main() -> None:
        async with http(toy_app(max_body_size=100)) as client:
            refused(await client.post("/length", content=b"x" * 101), 413, "body_too_large")
            refused(await client.post("/length", content=chunks(40, 61)), 413, "body_too_large")
            lied = await client.post("/length", content=chunks(150), headers={"Content-Length": "5"})
            refused(lied, 413, "body_too_large")

    run(main())


def test_an_announced_body_is_refused_unread_and_an_endless_one_after_the_limit() -> None:
    app = toy_app(max_body_size=100)

    async def call(headers: list[tuple[bytes, bytes]]) -> tuple[int, int]:
        """The status, and how many messages of an endless body were taken in."""
        taken, sent = 0, []

        async def receive():
            nonlocal taken
            taken += 1
            return {"type": "http.request", "body": b"x" * 30, "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/length", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return sent[0]["status"], taken

    async def main() -> None:
        assert await call([(b"content-length", b"101")]) == (413, 0)
        assert await call([]) == (413, 4)

    run(main())


# --- requests at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hold", "/stream"])
def test_beyond_the_limit_requests_are_told_to_come_back(path: str) -> None:
    async def main() -> None:
        app = toy_app(max_concurrent_requests=1)
        async with http(app) as client:
            running = asyncio.ensure_future(client.get(path))
            await app.state.arrived.wait()
            response = await client.get("/version")
            refused(response, 429, "overloaded")
            assert int(response.headers["Retry-After"]) > 0
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.get("/health")).json()["status"] == "starting"
            app.state.release.set()
            assert (await running).status_code == 200
            assert (await client.get("/version")).status_code == 200

    run(main())


def test_a_request_that_fails_or_is_cancelled_does_not_count_for_ever() -> None:
    async def main() -> None:
        app = toy_app(max_concurrent_requests=1)
        async with http(app) as client:
            assert (await client.get("/fail")).status_code == 500
            running = asyncio.ensure_future(client.get("/hold"))
            await app.state.arrived.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (await client.get("/version")).status_code == 200

    run(main())


def test_a_draining_server_takes_nothing_new() -> None:
    async def main() -> None:
        app = toy_app()
        async with http(app) as client:
            running = asyncio.ensure_future(client.get("/stream"))
            await app.state.arrived.wait()
            app.state.quire.draining = True
            response = await client.get("/version")
            refused(response, 503, "draining")
            assert response.headers["Retry-After"]
            assert (await client.get("/health")).json() == {"status": "draining"}
            app.state.release.set()
            assert (await running).text == "begun and ended"

    run(main())


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_unexpected_exception_is_logged_and_not_told(caplog) -> None:
    async def main() -> None:
        async with http(toy_app(allowed_origins=("https://site",))) as client:
            headers = {"X-Request-Id": "find-me", "Origin": "https://site"}
            response = await client.get("/fail", headers=headers)
            refused(response, 500, "internal_error")
            assert "secret" not in response.text and "ZeroDivision" not in response.text
            assert response.headers["X-Request-Id"] == "find-me"
            assert response.headers["Access-Control-Allow-Origin"] == "https://site"

    run(main())
    (record,) = [r for r in caplog.records if r.exc_info]
    assert record.levelno == logging.ERROR and "ZeroDivisionError" in caplog.text


def test_a_response_that_breaks_off_is_logged_once_and_left_unfinished(caplog) -> None:
    """So that the HTTP server closes the connection, and the client knows."""
    sent = []
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        for message in received:
            return message
        await asyncio.Event().wait()  # the client stays

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/fail-midway", "headers": [], "query_string": b""}
    run(toy_app()(scope, receive, send))
    assert [m.get("body") for m in sent] == [None, b"begun"] and sent[-1]["more_body"]
    assert [r.name for r in caplog.records if r.exc_info] == ["quire.server"]


# --- ids -------------------------------------------------------------------------------------------------------------


def test_a_sane_request_id_is_kept() -> None:
    async def main() -> None:
        async with http(toy_app()) as client:
            for given in ("abc", "req_2026-01-31.7", "A" * 128):
                response = await client.get("/version", headers={"X-Request-Id": given})
                assert response.headers.get_list("X-Request-Id") == [given]

    run(main())


@pytest.mark.parametrize("given", ["", "a b", "a\tb", "x" * 129, "é", '"', "a;b", "\x7f"])
def test_any_other_is_replaced_by_a_new_one(given: str) -> None:
    async def main() -> None:
        async with http(toy_app()) as client:
            ids = [(await client.get("/version", headers={"X-Request-Id": given.encode()})).headers["X-Request-Id"]
                   for _ in range(2)]  # fmt: skip
            assert len(set(ids)) == 2 and all(len(i) == 32 for i in ids)

    run(main())


# --- CORS ------------------------------------------------------------------------------------------------------------

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def test_a_browser_on_an_allowed_site_may_ask_without_the_key_and_read_refusals() -> None:
    async def main() -> None:
        app = toy_app(allowed_origins=("https://site",), api_key=("sk-1",), max_body_size=3)
        async with http(app) as client:
            answer = await client.options("/v1/models", headers={"Origin": "https://site", **PREFLIGHT})
            assert answer.status_code == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "https://site"
            assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
            no_key = await client.get("/v1/models", headers={"Origin": "https://site"})
            key = {"Origin": "https://site", "Authorization": "Bearer sk-1"}
            too_long = await client.post("/length", content=b"long", headers=key)
            for response, status in ((no_key, 401), (too_long, 413)):
                assert response.status_code == status
                assert response.headers["Access-Control-Allow-Origin"] == "https://site"
                assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]

    run(main())


def test_other_sites_and_other_servers_get_no_such_headers() -> None:
    async def main() -> None:
        async with http(toy_app(allowed_origins=("https://site",), api_key=("sk-1",))) as client:
            answer = await client.options("/v1/models", headers={"Origin": "https://evil", **PREFLIGHT})
            assert answer.status_code == 400 and "Access-Control-Allow-Origin" not in answer.headers
        async with http(toy_app()) as client:
            response = await client.get("/version", headers={"Origin": "https://site"})
            assert response.status_code == 200 and "Access-Control-Allow-Origin" not in response.headers

    run(main())
