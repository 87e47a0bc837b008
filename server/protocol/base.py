"""How fields of a request are classified: implemented, accepted without effect, or refused. Nothing else exists.

An implemented field is a plain field of the model. ``accepted`` marks one that is checked and then has no effect, and
says why that is right. ``REFUSED`` of a model names the fields that OpenAI knows and quire does not, each with the
reason and the remedy. Anything else is refused by its name. ``field_table`` is what the documentation prints.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from quire.reference.control.errors import RequestError


def report_first(schema: Any) -> None:
    """Let every list in a schema report the first of its wrong items only.

    By default pydantic reports them all, and a few megabytes of them would hold up everybody else for minutes.
    """
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = schema.values()
    elif not isinstance(schema, list | tuple):
        return
    for part in schema:
        report_first(part)


class FieldRefused(RequestError):
    """A field that OpenAI knows and quire does not."""


class RequestModel(BaseModel):
    """Base of all request bodies: unknown names are refused; ``null`` means that a field was not given."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    REFUSED: ClassVar[dict[str, tuple[str, str]]] = {}  # field -> (why it is refused, what to do instead)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name, (problem, remedy) in cls.REFUSED.items():
            if body.get(name) is not None:
                raise FieldRefused(name, body[name], problem, remedy)
        known = {info.alias or name for name, info in cls.model_fields.items()}
        unknown = next((name for name in body if name not in known), None)  # one is enough to say so
        return {name: value for name, value in body.items() if value is not None and (name in known or name == unknown)}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        report_first(schema)
        return schema


def accepted(why: str) -> Any:
    """Mark a field that is checked and then has no effect: ``user: Annotated[str | None, accepted("…")] = None``."""
    return Field(json_schema_extra={"x-quire-accepted": why})


class FieldRow(NamedTuple):
    """A line of the documentation's table."""

    name: str
    status: str  # "implemented", "accepted" or "refused"
    note: str
    annotation: Any = None  # its type; None for what is refused


def field_table(model: type[RequestModel]) -> list[FieldRow]:
    """Every field of a request, classified. A model may refuse what the one that it extends knows."""
    rows = []
    for name, info in model.model_fields.items():
        if name in model.REFUSED:
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        why = extra.get("x-quire-accepted")
        status = "implemented" if why is None else "accepted"
        rows.append(FieldRow(info.alias or name, status, str(why or info.description or ""), info.annotation))
    rows += [FieldRow(name, "refused", f"{problem}. {remedy}") for name, (problem, remedy) in model.REFUSED.items()]
    return rows
