"""A server whose model does as one would wish; ``server`` (tests/conftest.py) is the one of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.conftest import LiveServer, serve
from tests.server.scripted import scripted_engine

RULES = [
    (
        lambda prompt: "both cities" in prompt,
        "".join(
            f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>\n'
            for city in ("Oslo", "Rome")
        ),
    ),
    (
        lambda prompt: "weather" in prompt,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    ),
    (lambda prompt: "Ada" in prompt, '{"name":"Ada","age":36}'),
]


@pytest.fixture(scope="session")
def scripted() -> Iterator[LiveServer]:
    """A model that calls tools and fills schemas as one would wish."""
    with serve(engine=scripted_engine(RULES)) as live:
        yield live
