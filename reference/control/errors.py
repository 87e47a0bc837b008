"""Errors that a user can act on: each names the field, the value that was given and the remedy.

Everything that quire refuses, it refuses with one of these, at the first place that can know. They subclass
``ValueError`` so that callers who only know Python's own errors are served too; the server turns them into OpenAI's
error objects by their fields.
"""


class QuireError(ValueError):
    """Base of quire's own errors: ``field`` (what was wrong), ``value`` (what was given), ``remedy`` (what to do).

    The message reads ``field=value: problem. remedy``; long values are shortened so that a log line stays a line.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy
        shown = repr(value)
        if len(shown) > 120:
            shown = f"{shown[:100]}… ({len(shown)} characters)"
        super().__init__(f"{field}={shown}: {problem}. {remedy}")

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        """Pickle by fields: errors cross the process border between engine and server."""
        return type(self), (self.field, self.value, self.problem, self.remedy)


class RequestError(QuireError):
    """One request is unusable; no other request is touched."""


class ConfigError(QuireError):
    """The engine cannot start as configured."""


class CheckpointError(QuireError):
    """A model folder is missing, incomplete, damaged or of an unsupported architecture."""
