"""Simplifying tags and captions: what contradicts itself with several people, what is said twice, what is a rating."""

from __future__ import annotations

import re

_SHORT = 3  # tags up to this length are faces such as ^_^ whose underscore is a mouth

_LENGTHS = re.compile(r"(long|short|medium) hair")
_CONTRADICTIONS = (
    _LENGTHS,
    re.compile(r"(bob|hime) cut"),
    re.compile(r"[\w-]+ eyes"),
    re.compile(r"[\w-]+ sleeves|sleeveless"),
    re.compile(
        r"ponytail|twintails|two tails|two side up|sidelocks|ahoge|(single (hair|side)|[\w-]+) bun|([\w-]+ )?braid"
    ),
)
_HAIR = re.compile(r"[\w-]+ hair")
_GENERAL = re.compile(r"[\w-]+|hair ornament")


def clean_tags(tags: str) -> str:
    """Tags with blanks for underscores, without ratings, contradictions between several people, and repetitions."""
    kept = [_with_blanks(tag) for tag in tags.split(", ")]
    kept = [tag for tag in kept if tag and not tag.startswith("rating:")]
    if any("girls" in tag or "boys" in tag for tag in kept):
        kept = _without_contradictions(kept)
    return ", ".join(_without_general(kept))


def _with_blanks(tag: str) -> str:
    tag = tag.strip()
    return tag if len(tag) <= _SHORT else tag.replace("_", " ")


def _without_contradictions(tags: list[str]) -> list[str]:
    """Of several people each has eyes and hair of its own: tags of a kind that occur twice say nothing about anyone."""
    for kind in _CONTRADICTIONS:
        tags = _unless_several(tags, [tag for tag in tags if kind.fullmatch(tag)])
    # a length of hair that all share is no colour
    return _unless_several(tags, [tag for tag in tags if _HAIR.fullmatch(tag) and not _LENGTHS.fullmatch(tag)])


def _unless_several(tags: list[str], found: list[str]) -> list[str]:
    return tags if len(found) < 2 else [tag for tag in tags if tag not in found]


def _without_general(tags: list[str]) -> list[str]:
    """Leave out `shirt` where there is `white shirt`."""
    ends = {" ".join(words[start:]) for tag in tags for words in [tag.split(" ")] for start in range(1, len(words))}
    return [tag for tag in tags if not (tag in ends and _GENERAL.fullmatch(tag))]


_ONE, _MANY = "girl", "girls"
_DRAWN = r"(?:anime|cartoon)"
_REPLACEMENTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\banime(?: anime)+\b", "anime"),
        (r"\byoung ", ""),
        (rf"\b(?:{_DRAWN} )*(?:women|people)\b", _MANY),
        (rf"\b(?:{_DRAWN} )*(?:woman|female|lady|person)\b", _ONE),
        (rf"\b{_DRAWN} (?:girl|character)\b", _ONE),
        (rf"\b{_DRAWN} (?:girls|characters)\b", _MANY),
        (rf"\ban? (?:{_DRAWN} )+(image)\b", r"an \1"),
        (rf"\ban? (?:{_DRAWN} )+(picture|drawing|figure)\b", r"a \1"),
        (rf"\b({_ONE})(?: {_ONE})+\b", r"\1"),
        (rf"\ban {_ONE}\b", f"a {_ONE}"),
    )
)


def clean_caption(caption: str) -> str:
    """A caption of a drawing in plain words: people become girl or girls, and that it is drawn is left out."""
    before = ""
    while caption != before:
        before = caption
        for pattern, words in _REPLACEMENTS:
            caption = pattern.sub(words, caption)
    return caption
