"""A page with thousands of components, sent small: Gradio's own page carries none of them, and a script of ours, the
same for all visitors and kept by their browsers, brings them packed.

Gradio sends every component with everything it knows about it (2.2 MB for all tabs). Here components of equal kind,
label and choices share one entry, lists of ids are ranges, and what only Gradio's server needs stays there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import BlocksConfig

# what the browser's side of Gradio never reads
_SERVER_PROPS = frozenset(("preserved_by_key", "name", "_selectable", "_retryable", "_undoable", "likeable"))
_NO_CLASSES = ("elem_classes", "buttons")
_OWN_PROPS = ("elem_id", "value")
_LEAST_RUN = 3
_PLACE = ("top", "tabs", "group", "grid")


class _Config(BlocksConfig):
    """Gradio's list of components and events; for the page itself an empty one."""

    def get_config(self, renderable: Any = None) -> Any:
        """As Gradio's, for a part that is made again; nothing for the whole page, which `packed` gives."""
        if renderable is not None:
            return super().get_config(renderable)
        layout = {"id": self.root_block._id, "children": []}
        page = {"layout": layout, "components": [], "dependencies": []}
        return {"page": {"": page}, "components": [], "dependencies": [], "layout": layout}

    def whole(self) -> Any:
        """What Gradio would send."""
        return super().get_config()


class LeanBlocks(gr.Blocks):
    """A `gr.Blocks` whose page comes without its components; `packed` gives them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.default_config = _Config(self)

    def packed(self, finish: Callable[[str, bool], str]) -> dict[str, Any]:
        """All components, events and the layout, small; script.js unpacks them.

        Args:
            finish: makes a marked text ready, given also whether it is HTML.
        Returns:
            `shapes` ([type, properties]) shared by `parts` ([id, shape, element id, value]; left out at the end where
            there is none); `lists` of ids used by `events`; `common` what most events say alike; `layout`.
        """
        whole = self.default_config.whole()
        shapes: dict[str, int] = {}
        kinds: list[list[Any]] = []
        parts = [_part(each, shapes, kinds, finish) for each in whole["components"]]
        events = [_event(each) for each in whole["dependencies"]]
        lists: dict[tuple[int, ...], int] = {}
        for event in events:
            for name in ("inputs", "outputs"):
                event[name] = lists.setdefault(tuple(event[name]), len(lists))
        common = _common(events)
        return {
            "shapes": kinds,
            "parts": parts,
            "lists": [ranges(each) for each in lists],
            "common": common,
            "events": [
                {key: value for key, value in event.items() if key not in common or common[key] != value}
                for event in events
            ],
            "layout": _tree(whole["layout"]),
        }


def _part(
    component: dict[str, Any], shapes: dict[str, int], kinds: list[list[Any]], finish: Callable[[str, bool], str]
) -> list[Any]:
    """One component as [id, shape, element id, value]; its shape is added to those known if it is new."""
    kind = component["type"]
    props = {
        key: finish_all(value, finish, html=kind == "html")
        for key, value in component["props"].items()
        if key not in _SERVER_PROPS and not (key in _NO_CLASSES and not value) and not callable(value)
    }
    own = [props.pop(key, None) for key in _OWN_PROPS]
    shape = repr((kind, props))
    if shape not in shapes:
        shapes[shape] = len(kinds)
        kinds.append([kind, props])
    row = [component["id"], shapes[shape], *own]
    while row[-1] is None:
        row.pop()
    return row


def finish_all(value: Any, finish: Callable[[str, bool], str], *, html: bool = False) -> Any:
    """The value with every text in it made ready; numbers that JSON has no word for become none."""
    if isinstance(value, str):
        return finish(value, html)
    if isinstance(value, list | tuple):
        return [finish_all(each, finish, html=html) for each in value]
    if isinstance(value, dict):
        return {key: finish_all(each, finish, html=html) for key, each in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _event(dependency: dict[str, Any]) -> dict[str, Any]:
    """An event with its targets by event name; nobody calls one of this page by name."""
    targets: dict[str, list[int]] = {}
    for component, name in dependency["targets"]:
        targets.setdefault(name, []).append(component)
    packed = {name: ranges(components) for name, components in targets.items()}
    return {**dependency, "targets": packed, "api_name": None}


def _common(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What every event says, or most do, except what makes it that event."""
    found: dict[str, Any] = {}
    for key in sorted(events[0].keys() - {"id", "targets", "inputs", "outputs"}) if events else ():
        values = [event[key] for event in events]
        found[key] = max(values, key=values.count)
    return found


def ranges(ids: Sequence[int]) -> list[int]:
    """A list of ids in which runs are short: after an id a negative number -n stands for the n ids that follow it."""
    packed: list[int] = []
    start = 0
    while start < len(ids):
        end = start + 1
        while end < len(ids) and ids[end] == ids[end - 1] + 1:
            end += 1
        run = end - start
        packed += [ids[start], 1 - run] if run >= _LEAST_RUN else list(ids[start:end])
        start = end
    return packed


def pack_facts(facts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What the script knows about the fields of all forms, small.

    Args:
        facts: form -> key -> fact; the names in `_PLACE` and `basic` say where a field stands.
    Returns:
        `about`: [key, fact] for every different one; `places`: form -> list of [place, numbers of the fields there],
        where a field of the short form is its number n and another one -1 - n.
    """
    about: list[list[Any]] = []
    known: dict[str, int] = {}
    places: dict[str, list[list[Any]]] = {}
    for form, entries in facts.items():
        here: dict[str, list[Any]] = {}
        for key, entry in entries.items():
            place = {name: entry[name] for name in _PLACE if entry.get(name) not in (None, "", [], ())}
            fact = {name: value for name, value in entry.items() if name not in (*_PLACE, "basic") and value}
            number = known.setdefault(repr((key, fact)), len(known))
            if number == len(about):
                about.append([key, fact])
            here.setdefault(repr(place), [place, []])[1].append(number if entry.get("basic") else -1 - number)
        places[form] = list(here.values())
    return {"about": about, "places": places}


def _tree(node: dict[str, Any]) -> Any:
    """The layout: an id, or [id, children...]."""
    if "children" not in node:
        return node["id"]
    return [node["id"], *(_tree(child) for child in node["children"])]
