"""The log: one format for quire and uvicorn, text or JSON, with the id of the request in every line of it.

One line per request says what an operator asks first: which model, how many tokens, how long, how it ended. Prompts,
outputs and keys never get into the log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

from quire.reference.control.errors import ConfigError
from quire.server.config import ServerConfig
from quire.server.context import RequestRecord, current

logger = logging.getLogger("quire.request")

LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")


def configure_logging(config: ServerConfig) -> None:
    """Set up the log of this process: to stderr, in ``config.log_format``, from the level of QUIRE_LOGGING_LEVEL on."""
    level = os.environ.get("QUIRE_LOGGING_LEVEL", "INFO").upper()
    if level not in LEVELS:
        raise ConfigError("QUIRE_LOGGING_LEVEL", level, "no level of the log", f"Use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)  # other people's libraries
    for name in ("quire", "uvicorn", "uvicorn.error"):
        ours = logging.getLogger(name)
        ours.handlers = []
        ours.propagate = True
        ours.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True  # ``log_request`` knows more


def log_request(record: RequestRecord, *, quiet: bool) -> None:
    """The line of a request that is over. ``quiet`` ones, the probes, show at level DEBUG only."""
    level = logging.DEBUG if quiet else logging.INFO
    if logger.isEnabledFor(level):
        logger.log(level, "request", extra={"fields": summary(record)})


def summary(record: RequestRecord) -> dict[str, Any]:
    """What there is to say about a request; durations in seconds, since it came in. What does not apply is left out."""
    prompts = record.prompts
    first = [p.first_token_time for p in prompts if p.first_token_time is not None]
    fields = {
        "method": record.method,
        "path": record.path,
        "status": record.status or "disconnected",
        "duration": round(time.monotonic() - record.began, 4),
        "model": record.model,
        "prompt_tokens": sum(p.num_prompt_tokens for p in prompts) if prompts else None,
        "output_tokens": sum(p.num_generation_tokens for p in prompts) if prompts else None,
        "ttft": round(min(first) - record.began, 4) if first else None,
        "finish_reason": ",".join(sorted({reason for p in prompts for reason in p.finish_reasons})) or None,
        "error": record.error,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    request = current.get()
    head = {} if request is None else {"request_id": request.id}
    return {**head, **getattr(record, "fields", {})}


class TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00,000 INFO quire.request: request request_id=… method=POST path=/v1/completions …``"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        pairs = [f"{name}={_plain(value)}" for name, value in _fields(record).items()]
        return " ".join([super().formatMessage(record), *pairs])


def _plain(value: Any) -> str:
    """A value as one word: what has spaces or control characters is quoted, so that nobody can forge a line."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
