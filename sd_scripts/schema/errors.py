"""The errors that are shown to people as one sentence, without a traceback."""


class UserError(Exception):
    """Something the person can put right: a bad option, a missing file, two things that do not go together.

    Args:
        message: one sentence saying what was given and what is allowed.
        key: the option it is about, so that a form can mark the field; None where no single option is to blame.
        hint: the way out, in one sentence.
    """

    def __init__(self, message: str, key: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.hint = hint

    def __str__(self) -> str:
        stop = "" if not self.hint or self.message.endswith((".", "!", "?", ":", "\n")) else "."
        return f"{self.message}{stop} {self.hint}".strip()


class DataError(UserError):
    """A picture, caption or dataset description that cannot be used."""
