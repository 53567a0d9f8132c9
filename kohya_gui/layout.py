"""Where each option stands on a training tab: pages (sub-tabs) of groups (accordions) of keys.

A layout names the options whose place matters; `complete` adds every other option of the command at the end, by
section, so that an option new in the schema is on the page without a line here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sd_scripts.schema.option import OptionField


@dataclass(frozen=True)
class Group:
    """Options under one heading. `plain` groups have no accordion around them; `wide` keys take both columns; `basic`
    ones are in the short form too, closed."""

    title: str
    keys: tuple[str, ...]
    plain: bool = False
    basic: bool = False
    wide: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Page:
    """One sub-tab. `extra` names a hand-made part that stands under the groups."""

    name: str
    title: str
    groups: tuple[Group, ...] = ()
    pages: tuple["Page", ...] = ()
    extra: str = ""


@dataclass(frozen=True)
class Place:
    """How to reach a field: the names of the sub-tabs to open, then the accordion's name or ""."""

    tabs: tuple[str, ...]
    accordion: str


def placed_keys(pages: Iterable[Page]) -> Iterator[tuple[str, Place]]:
    """Every key with its place, in reading order."""

    def walk(page: Page, above: tuple[str, ...]) -> Iterator[tuple[str, Place]]:
        here = (*above, page.name)
        for number, group in enumerate(page.groups):
            for key in group.keys:
                yield key, Place(here, "" if group.plain else accordion_name(page, number))
        for child in page.pages:
            yield from walk(child, here)

    for page in pages:
        yield from walk(page, ())


def accordion_name(page: Page, number: int) -> str:
    """The name of the accordion around the group `number` of a page; unique on a tab."""
    return f"{page.name}-{number}"


def _known(page: Page, fields: Mapping[str, OptionField]) -> Page:
    """The page without the keys the command does not have, and without groups left empty."""
    groups = tuple(replace(group, keys=tuple(key for key in group.keys if key in fields)) for group in page.groups)
    pages = tuple(_known(child, fields) for child in page.pages)
    kept = tuple(child for child in pages if child.groups or child.pages or child.extra)
    return replace(page, groups=tuple(group for group in groups if group.keys), pages=kept)


def _with_rest(page: Page, rest: Mapping[str, list[str]], rest_page: str) -> Page:
    if page.name == rest_page:
        more = tuple(Group(title, tuple(keys)) for title, keys in rest.items())
        return replace(page, groups=(*page.groups, *more))
    return replace(page, pages=tuple(_with_rest(child, rest, rest_page) for child in page.pages))


def complete(
    pages: tuple[Page, ...],
    fields: Mapping[str, OptionField],
    rest_pages: Mapping[str, str],
    hidden: frozenset[str] = frozenset(),
) -> tuple[Page, ...]:
    """A layout that has every option of the command exactly once.

    Args:
        pages: the hand-made layout; keys the command does not know are left out.
        fields: the options of the command.
        rest_pages: option target -> name of the page that takes the options no page names; "" is the fallback target.
        hidden: options that the page itself sets and nobody types (the job folder, the configuration file).
    Raises:
        ValueError: if a key stands in two places.
    """
    known = tuple(_known(page, fields) for page in pages)
    placed = [key for key, _ in placed_keys(known)]
    if len(placed) != len(set(placed)):
        raise ValueError(f"placed twice: {sorted({key for key in placed if placed.count(key) > 1})}")
    rest: dict[str, dict[str, list[str]]] = {}
    for key, field in fields.items():
        if key not in placed and key not in hidden:
            where = rest_pages.get(field.target, rest_pages[""])
            rest.setdefault(where, {}).setdefault(f"More: {field.section}", []).append(key)
    for where, titles in rest.items():
        known = tuple(_with_rest(page, titles, where) for page in known)
    return known
