"""An engine in a thread of this process: for tests, notebooks and for embedding the application elsewhere.

The same loop and the same messages as with an engine process; only what carries them is shorter. ``quire serve`` uses
a process instead, where HTTP and the engine do not share one interpreter lock.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path

from quire import backend
from quire.assets import load_assets
from quire.reference.config import EngineConfig
from quire.reference.engine import Engine, EngineError
from quire.server.client import EngineClient
from quire.server.engine_loop import EngineLoop


class LocalEngine:
    """An engine loop in a thread, and a ``client`` for it. ``close`` (or ``with``) ends the thread."""

    def __init__(self, config: EngineConfig, *, engine: Engine | None = None) -> None:
        """Load ``config.model``, or serve an ``engine`` that is there already with that model's tokenizer."""
        assets = load_assets(config)
        if engine is None:
            engine = backend.build_engine(config, assets.path, eos_token_ids=assets.eos_token_ids)
        self.engine = engine
        self._folder = tempfile.TemporaryDirectory(prefix="quire-")
        self.address = f"ipc://{Path(self._folder.name) / 'engine'}"
        self._loop = EngineLoop(engine, self.address)
        self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
        self._thread.start()
        self.client = EngineClient(self.address, assets)

    def _run(self) -> None:
        with contextlib.suppress(EngineError):  # logged, and told to the client
            self._loop.run()

    def close(self) -> None:
        self._loop.stop()
        self._thread.join()
        self._folder.cleanup()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
