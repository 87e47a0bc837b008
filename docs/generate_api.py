"""Writes docs/api.md from the routes and the models of their requests: ``python docs/generate_api.py``.

Which fields there are, and what becomes of each, is what the models say (``quire.server.protocol.base``). What is true
of all endpoints stands here. ``tests/test_docs.py`` keeps the page in step with the code.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastapi.routing import APIRoute

from quire.server.app import ROUTES
from quire.server.protocol.base import RequestModel, field_table

PAGE = Path(__file__).parent / "api.md"

TEXT = """\
# The HTTP API

<!-- Written by docs/generate_api.py from the code. Change the models in server/protocol/, then run it again. -->

`quire serve` speaks OpenAI's protocol, with vLLM's additional fields under vLLM's names. Of every field it is known
what becomes of it:

- **implemented**: it does what OpenAI or vLLM says;
- **accepted**: it is checked and then has no effect, for the reason given;
- **refused**: OpenAI or vLLM know it, and quire answers with status 400 and says what to do instead.

Any other name is refused as well, with the code `unknown_parameter`; nothing is silently ignored. `null` means that a
field was not given. The server describes itself at `/openapi.json`, and at `/docs` for people: a
page that loads nothing from elsewhere.

## Errors

Every error is OpenAI's object, also in the middle of a stream:

```json
{"error": {"message": "top_p=2.0: not a finite number in the allowed range. Give a number in (0, 1]",
           "type": "invalid_request_error", "param": "top_p", "code": "invalid_value"}}
```

| status | code | when |
| --- | --- | --- |
| 400 | `invalid_json` | the body is no JSON object, or is not sent as `application/json` |
| 400 | `missing_required_parameter` | a field is missing |
| 400 | `unknown_parameter` | there is no such field |
| 400 | `unsupported_parameter` | a refused field |
| 400 | `invalid_value` | a value of the wrong type, out of range, or that does not fit the others |
| 400 | `context_length_exceeded` | the prompt is longer than the model's context |
| 401 | `invalid_api_key` | the key is missing or wrong |
| 404 | `model_not_found` | the model is not served here |
| 404 | `trace_disabled` | `/trace` without `--enable-trace` |
| 404 | `unknown_url` | there is no such path |
| 405 | `method_not_allowed` | the path does not answer this method |
| 413 | `body_too_large` | the body is longer than `--max-body-size` |
| 429 | `overloaded` | more requests at once than `--max-concurrent-requests`; come back after `Retry-After` |
| 500 | `internal_error` | a fault of the server; its log says more |
| 503 | `engine_unavailable`, `draining` | the engine starts or is lost, or the server is about to end |
| 504 | `timeout` | the request took longer than `--request-timeout` |

`param` names the field by its path, such as `messages.0.content`.

## Endpoints

{endpoints}

{requests}
## Objects in requests

{objects}"""

Model = type[RequestModel]


def routes() -> Iterator[APIRoute]:
    """All routes, in the order in which the application includes them."""
    for name in ROUTES:
        for route in importlib.import_module(f"quire.server.routes.{name}").router.routes:
            assert isinstance(route, APIRoute)
            yield route


def title(route: APIRoute) -> str:
    return f"{'/'.join(sorted(route.methods))} {route.path.replace(':path', '')}"


def model_of(route: APIRoute) -> Model | None:
    """The model of the route's body or query."""
    hints = get_type_hints(route.endpoint).values()
    return next((hint for hint in hints if isinstance(hint, type) and issubclass(hint, RequestModel)), None)


def inside(annotation: Any) -> Iterator[Model]:
    """The models that a type mentions, and those that these mention."""
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        yield annotation
        for row in field_table(annotation):
            yield from inside(row.annotation)
    for part in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from inside(part)


def kind(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not NoneType]
    if origin is Literal:
        return ", ".join(f"`{part!r}`".replace("'", '"') for part in parts)
    if origin is list:
        return f"list of {kind(parts[0])}"
    if origin is dict:
        return "object" if parts[1] is Any else f"object of {kind(parts[1])}"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return kind(parts[0])
    if parts:  # a union
        return " or ".join(dict.fromkeys(kind(part) for part in parts))
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "string", int: "integer", float: "number", bool: "boolean", Any: "anything"}[annotation]


def table(model: Model) -> str:
    """A model's fields: implemented, then accepted, then refused."""
    lines = ["| field | is | type | meaning |", "| --- | --- | --- | --- |"]
    rows = sorted(field_table(model), key=lambda row: ("implemented", "accepted", "refused").index(row.status))
    for row in rows:
        cells = (f"`{row.name}`", row.status, "" if row.annotation is None else kind(row.annotation), row.note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def docstring(of: Any) -> str:
    return " ".join((of.__doc__ or "").replace("``", "`").split())


def section(model: Model, heading: str) -> str:
    return f"### {heading}\n\n{docstring(model)}\n\n{table(model)}\n"


def page() -> str:
    """The whole page."""
    endpoints, requests = ["| endpoint | |", "| --- | --- |"], []
    objects: dict[Model, None] = {}
    for route in routes():
        endpoints.append(f"| `{title(route)}` | {docstring(route.endpoint)} |")
        model = model_of(route)
        if model is not None:
            requests.append(section(model, f"`{title(route)}`"))
            objects |= dict.fromkeys(list(inside(model))[1:])
    parts = {
        "{endpoints}": "\n".join(endpoints),
        "{requests}": "\n".join(requests),
        "{objects}": "\n".join(section(model, model.__name__) for model in objects),
    }
    text = TEXT
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
