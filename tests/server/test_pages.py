"""/docs, the page that Swagger makes of /openapi.json."""

from __future__ import annotations

import asyncio
import re

import pytest
from fastapi import FastAPI

from tests.server.toy_app import http, toy_app


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_it_loads_nothing_from_elsewhere(prefix: str) -> None:
    """So it works without internet, also where the application is mounted, and nobody else learns who reads it."""
    app = outer = toy_app()
    if prefix:
        outer = FastAPI()
        outer.mount(prefix, app)

    async def main() -> None:
        async with http(outer) as client:
            text = (await client.get(f"{prefix}/docs")).text
            loaded = re.findall(r'(?:src|href)="([^"]+)"', text) + re.findall(r"url: '([^']+)'", text)
            assert f"{prefix}/openapi.json" in loaded and len(loaded) >= 3
            for address in loaded:
                assert address.startswith(f"{prefix}/"), address
                assert (await client.get(address)).status_code == 200, address

    asyncio.run(main())
