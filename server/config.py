"""What can be set on the server itself, beside the engine arguments. Names are vLLM's where it has one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from quire.reference.control.checks import known_fields_only
from quire.reference.control.errors import ConfigError


@known_fields_only(ConfigError, "server argument")
@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Arguments of ``quire serve`` and of ``build_app``.

    host                     address to listen on
    port                     port to listen on; 0 takes a free one
    served_model_name        names that clients may ask for; the first one is reported. Empty = the model's own name
    api_key                  keys that are accepted; without any (and no file) the server is open to all
    api_key_file             file with one key per line; empty lines and lines that begin with # are skipped
    public_metrics           /metrics answers without a key, as /health and /ready do
    allowed_origins          origins that browsers may call from (CORS); "*" for any
    allowed_methods          methods for CORS
    allowed_headers          headers for CORS
    allow_credentials        credentials for CORS
    max_body_size            bytes of a request's body at most; more is refused with 413
    max_concurrent_requests  requests at once at most, per API process; more are refused with 429 and Retry-After
    max_stored_responses     responses kept in memory at most, per API process, for previous_response_id
    request_timeout          seconds that one request may take in the engine; None = no limit
    shutdown_timeout         seconds that running requests get to finish after SIGTERM
    restart_engine           start the engine's process again when it dies; else the server ends with it
    api_server_count         API processes in front of the one engine
    chat_template            file with a Jinja chat template, or the template itself, instead of the tokenizer's
    tool_call_parser         how tool calls are read from the model's text; "auto" = by the chat template, "none" = not
    reasoning_parser         how reasoning is told from the answer; "auto" = by the chat template, "none" = not
    log_requests             one line in the log for each request
    log_format               "text" for people, "json" for programs
    ui                       the playground, at /ui; needs the extra quire[ui] and one API process
    enable_trace             GET /trace streams every step of the engine, for the inspector; behind the key
    trace_text               the stream also says what was said: prompts, answers, tokens. Else it has their lengths
    otlp_traces_endpoint     where OpenTelemetry traces go; needs the extra quire[otel]
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    api_key: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: str | None = None
    public_metrics: bool = True
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    max_body_size: int = 32 << 20
    max_concurrent_requests: int = 1024
    max_stored_responses: int = 1000
    request_timeout: float | None = None
    shutdown_timeout: float = 30.0
    restart_engine: bool = False
    api_server_count: int = 1
    chat_template: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    log_requests: bool = True
    log_format: str = "text"
    ui: bool = False
    enable_trace: bool = False
    trace_text: bool = False
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, tuple):
                values = (value,) if isinstance(value, str) else value
                if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
                    raise ConfigError(f.name, value, "not a list of texts", "Give one or more strings")
                object.__setattr__(self, f.name, tuple(values))
            elif isinstance(f.default, bool) and not isinstance(value, bool):
                raise ConfigError(f.name, value, "neither True nor False", "Give one of the two")
            elif "str" in str(f.type) and not isinstance(value, str) and not (value is None and f.default is None):
                raise ConfigError(f.name, value, "not a text", "Give a string")
        at_least = {"max_body_size": 1, "max_concurrent_requests": 1, "max_stored_responses": 0, "api_server_count": 1}
        for name, least in {**at_least, "port": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(name, value, "not an allowed integer", f"Give an integer of at least {least}")
        if self.port > 65535:
            raise ConfigError("port", self.port, "no port number", "Give one from 0 to 65535")
        if self.ui and self.api_server_count > 1:
            problem = "a page talks to one process, and with ui each of several would take some of its requests"
            raise ConfigError("api_server_count", self.api_server_count, problem, "Run `quire ui` beside the server")
        for name in ("shutdown_timeout", "request_timeout"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and value >= 0) and not (value is None and name == "request_timeout"):
                raise ConfigError(name, value, "not a number of seconds", "Give a finite number that is not negative")
        if self.request_timeout == 0:
            raise ConfigError(
                "request_timeout", 0, "no request could be answered", "Give more seconds, or leave it out"
            )
        if self.trace_text and not self.enable_trace:
            raise ConfigError(
                "trace_text", True, "enable_trace is False, so there is no stream", "Set enable_trace too"
            )
        if self.log_format not in ("text", "json"):
            raise ConfigError("log_format", self.log_format, "unknown choice", "Choose text or json")


def read_config(path: Path) -> dict[str, Any]:
    """The arguments in a YAML file: a mapping of their names, written with - or _, to values."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError("--config", str(path), f"cannot be read ({problem})", "Name a YAML file") from None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ConfigError("--config", str(path), "not a mapping of names to values", "Write lines such as `port: 8000`")
    return {name.replace("-", "_"): value for name, value in given.items()}
