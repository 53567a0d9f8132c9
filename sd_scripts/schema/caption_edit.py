"""What becomes of a caption when one text is written for all pictures, words are added, or words are replaced."""

from dataclasses import dataclass

from .errors import UserError

_CLOSING = ",.;:!?"


@dataclass(frozen=True)
class CaptionEdit:
    """One edit of all captions of a folder; empty texts do nothing."""

    text: str = ""
    prefix: str = ""
    postfix: str = ""
    find: str = ""
    replace: str = ""
    overwrite: bool = False

    def check(self) -> None:
        """See that there is something to do.

        Raises:
            UserError: nothing is given, or only what changes existing captions although they must not be changed.
        """
        if not (self.text or self.prefix or self.postfix or self.find):
            raise UserError(
                "There is nothing to write.", "caption_text", "Give a caption, words to add or text to find."
            )
        if self.find and not self.overwrite:
            raise UserError(
                "Finding and replacing changes captions that are there.",
                "overwrite",
                "Allow that existing captions are overwritten.",
            )

    def of(self, existing: str | None) -> str | None:
        """The new caption of a picture; None where it stays as it is.

        Args:
            existing: its caption, or None if it has none.
        """
        if existing is not None and not self.overwrite:
            return None
        start = self.text or existing
        if start is None and not (self.prefix or self.postfix):
            return None
        made = with_words(self.prefix, start or "", self.postfix)
        if self.find:
            made = made.replace(self.find, self.replace)
        return None if made == existing else made


def with_words(prefix: str, caption: str, postfix: str) -> str:
    """The caption with words in front and behind, one blank between them; none before a comma or full stop."""
    made = caption.strip()
    if prefix.strip():
        made = f"{prefix.strip()} {made}".strip()
    if postfix.strip():
        behind = postfix.strip()
        made = (made + behind if behind[0] in _CLOSING else f"{made} {behind}").strip()
    return made
