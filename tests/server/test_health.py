"""What a load balancer asks."""

from __future__ import annotations


def test_a_server_that_serves_is_healthy_and_ready(server) -> None:
    with server.http() as http:
        for path in ("/health", "/ready"):
            answer = http.get(path)
            assert answer.status_code == 200 and answer.json() == {"status": "ready"}


def test_version(server) -> None:
    from quire import __version__

    assert server.http().get("/version").json() == {"version": __version__}
