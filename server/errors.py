"""Errors as OpenAI's clients know them: ``{"error": {"message", "type", "param", "code"}}`` with the right status.

Everything that goes wrong in a request becomes an ``ApiError``, here and nowhere else; routes raise quire's own errors
or an ``ApiError`` and never build a response for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from quire.reference.control.errors import QuireError, RequestError
from quire.server.client import EngineUnavailable, RequestTimeout
from quire.server.context import current
from quire.server.protocol.base import FieldRefused

TYPES = {
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}  # else "invalid_request_error" below 500, "server_error" from there


class ApiError(Exception):
    """An error to be sent to the client.

    status   HTTP status; ``type`` of the error object follows from it
    param    the field of the request that is to blame, as the client wrote it
    code     a word for programs, such as "model_not_found" or "context_length_exceeded"
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The error object, also sent as an event when a stream breaks."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception. Unknown ones say no more than that they happened."""
    match error:
        case ApiError():
            return error
        case FieldRefused():
            return ApiError(400, str(error), param=error.field, code="unsupported_parameter")
        case QuireError():
            code = "context_length_exceeded" if "max_model_len" in error.problem else "invalid_value"
            return ApiError(400, str(error), param=PARAMS.get(error.field, error.field), code=code)
        case RequestValidationError():
            return validation_error(error.errors())
        case EngineUnavailable():
            return ApiError(503, f"{error}; try again later", code="engine_unavailable", headers={"Retry-After": "5"})
        case RequestTimeout():
            return ApiError(504, str(error), code="timeout")
        case HTTPException():
            return http_error(error)
        case _:
            return ApiError(500, "the server failed at this request; its log says how", code="internal_error")


# The engine's names of fields that a client knows by another one.
PARAMS = {"prompt_token_ids": "prompt", "params": None}


def http_error(error: HTTPException) -> ApiError:
    """What the framework refuses before a route has a say."""
    headers = dict(error.headers or {})
    match error.status_code:
        case 400:
            message = "the body cannot be parsed: it is nested too deeply, has an endless number, or is no text"
            return ApiError(400, message, code="invalid_json")
        case 404:
            return ApiError(404, "Invalid URL: nothing is here; /openapi.json lists the endpoints", code="unknown_url")
        case 405:
            message = f"Not allowed with this method; {headers.get('Allow', 'another one')} is"
            return ApiError(405, message, code="method_not_allowed", headers=headers)
        case status:
            return ApiError(status, str(error.detail), headers=headers)


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors from inside speak of fields as the client does: ``names`` has the client's name for quire's."""
    try:
        yield
    except RequestError as error:
        if error.field not in names:
            raise
        raise RequestError(names[error.field], error.value, error.problem, error.remedy) from None


def place(field: str, index: int, count: int) -> str:
    """The name of one of a field's values: ``input.2``, and just ``input`` where there is no other."""
    return field if count == 1 else f"{field}.{index}"


def validation_error(errors: Any) -> ApiError:
    """pydantic's findings as one error that names the first culprit by its path in the body."""
    causes = [e for e in errors if isinstance(e.get("ctx", {}).get("error"), QuireError)]
    # Of the types that a field may have, the one that was meant is where the error is deepest.
    first = causes[0] if causes else max(errors, key=lambda e: len(e["loc"]))
    path = first["loc"][1:]
    where = [part for part in path if is_field(part)]
    if first["type"] == "extra_forbidden":
        where = [*filter(is_field, path[:-1]), path[-1][:80]]  # the client's own word
    param = ".".join(map(str, where)) or None
    if causes:
        error = to_api_error(first["ctx"]["error"])
        error.param = ".".join(map(str, [*where, error.param]))
        return error
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
        case "model_attributes_type" if param is None:
            return ApiError(400, "the body is not a JSON object sent as application/json", code="invalid_json")
        case "extra_forbidden":
            message = f"Unrecognized request argument supplied: {param}. Leave it out, or correct its spelling"
            return ApiError(400, message, param=param, code="unknown_parameter")
        case "missing":
            message = f"Missing required parameter: '{param}'" if param else "Missing request body: send a JSON object"
            return ApiError(400, message, param=param, code="missing_required_parameter")
        case _:
            shown = repr(first.get("input"))
            shown = shown if len(shown) <= 80 else f"{shown[:60]}… ({len(shown)} characters)"
            problem = "Input should be an object" if first["type"] == "model_attributes_type" else first["msg"]
            message = f"Invalid value for '{param}': {problem} (given: {shown})"
            return ApiError(400, message, param=param, code="invalid_value")


def noted(error: Exception) -> ApiError:
    """The error that a request ends with, in a response or in a stream; its code goes to the log and the metrics."""
    api_error = to_api_error(error)
    record = current.get()
    if record is not None:
        record.error = api_error.code or api_error.body()["error"]["type"]
    return api_error


def respond(error: Exception) -> JSONResponse:
    """The response to a request that ends with ``error``."""
    api_error = noted(error)
    return JSONResponse(api_error.body(), api_error.status, api_error.headers)


async def error_response(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's handler for every exception that leaves a route."""
    return respond(error)


def is_field(part: str | int) -> bool:
    """Whether a step of pydantic's path is a field or an index, and not one of the types that a field may have."""
    return isinstance(part, int) or (part.replace("_", "").isalnum() and part.islower() and part not in TYPE_NAMES)


TYPE_NAMES = ("str", "int", "float", "bool", "dict", "list")
