"""A remark about the run that is worth telling the person, but does not stop it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """The fields of a `warn` event: a short stable code, one sentence, the way out, the option it is about."""

    code: str
    message: str
    hint: str = ""
    key: str | None = None
