"""CLIP's vocabulary, as far as a form needs it: whether a word is known, and how many tokens words take."""

import gzip
import re
from functools import lru_cache

from kohya_gui.command import PROJECT

_MERGES = PROJECT / "sd_scripts" / "models" / "assets" / "clip" / "merges.txt.gz"
_PARTS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)
_END = "</w>"


@lru_cache(maxsize=1)
def _ranks() -> dict[tuple[str, str], int]:
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines)
    return {(left, right): rank for rank, (left, _, right) in enumerate(pairs)}


@lru_cache(maxsize=1)
def _tokens() -> frozenset[str]:
    return frozenset(left + right for left, right in _ranks())


def is_token(word: str) -> bool:
    """Whether the vocabulary has exactly this text as a token, so that it cannot be added as a new word."""
    return len(word) == 1 and word.isprintable() and ord(word) < 256 or word in _tokens()


def is_word(word: str) -> bool:
    """Whether this is an ordinary word that the text encoder knows as a whole."""
    return is_token(word.lower()) if len(word) == 1 else f"{word.lower()}{_END}" in _tokens()


def count_tokens(text: str) -> int:
    """How many tokens a text takes, without the marks of its beginning and end."""
    return sum(_count(part) for part in _PARTS.findall(" ".join(text.lower().split())))


@lru_cache(maxsize=4096)
def _count(part: str) -> int:
    """Tokens of one word: the most frequent neighbours are joined until none are known."""
    if not part.isascii():
        return len(part.encode("utf-8")) if not part.isalpha() else max(len(part.encode("utf-8")) // 2, 1)
    symbols = [*part[:-1], part[-1] + _END]
    ranks = _ranks()
    while len(symbols) > 1:
        pairs = [(ranks.get(pair, len(ranks)), number) for number, pair in enumerate(zip(symbols, symbols[1:]))]
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return len(symbols)
