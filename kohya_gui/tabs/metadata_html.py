"""What is noted in a .safetensors file, as HTML: groups, dataset, tags, and everything as it stands there.

Anybody may have written the file: every text is escaped, and nothing is endless.
"""

import json
from html import escape

from kohya_gui.localization import Words
from kohya_gui.pickers import size_text
from kohya_gui.tabs import results
from sd_scripts.schema.metadata_view import Group, MetadataView, read_view

MOST_TAGS = 300
MOST_FOLDERS = 50
MOST_NOTES = 300
MOST_TEXT = 2_000
MOST_RAW = 200_000


def sheet(path: str, words: Words) -> str:
    """All that a file tells.

    Raises:
        UserError: it cannot be read.
    """
    found = read_view(path)
    filter_ = (
        f'<input class="k-filter" type="search" data-filter="1" placeholder="{words("Search the notes")}" '
        f'aria-label="{words("Search the notes")}">'
    )
    parts = [_about(found, words), "".join(_group(group, words) for group in found.groups)]
    parts += [_dataset(found, words), _tags(found, words), _raw(found, words)]
    body = "".join(parts)
    return f'<div class="k-notes">{filter_ if found.raw else ""}{body}</div>'


def _about(found: MetadataView, words: Words) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in list(found.kinds.items())[:8])
    lines = [
        (words("File"), f"{found.name}, {size_text(found.size)}"),
        (words("What it is"), words.said(found.about)),
        (words("Tensors"), f"{found.tensors:,} ({kinds})" if kinds else "0"),
        (words("Numbers"), f"{found.parameters:,}"),
    ]
    # a data URL of a picture and nothing else, see `read_view`
    picture = f'<img class="k-notes-picture" alt="{words("Picture in the file")}" src="{found.picture}">'
    said = "" if found.raw else results.said(words("Nothing is noted in this file."))
    return f"{picture if found.picture else ''}{results.facts(lines)}{said}"


def _group(group: Group, words: Words) -> str:
    rows = "".join(
        f'<tr data-row="1"><th scope="row" title="{escape(entry.key)}">{escape(words.said(entry.label))}</th>'
        f"<td>{escape(_cut(entry.text))}</td></tr>"
        for entry in group.entries[:MOST_NOTES]
    )
    more = len(group.entries) - MOST_NOTES
    rest = results.said(words("and {n} more", n=more)) if more > 0 else ""
    title = escape(words.said(group.title))
    return f'<h2>{title}</h2><table class="k-table k-notes-table"><tbody>{rows}</tbody></table>{rest}'


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"


def _dataset(found: MetadataView, words: Words) -> str:
    made = ""
    if found.folders:
        head = (words("Folder"), words("Pictures"), words("Repeats"))
        rows = [(item.name, f"{item.images:,}", f"{item.repeats:,}") for item in found.folders[:MOST_FOLDERS]]
        made += f"<h2>{words('Folders')}</h2>{results.table(head, rows)}"
    if found.buckets:
        sizes = [(f"{item.width} x {item.height}", f"{item.images:,}") for item in found.buckets[:MOST_FOLDERS]]
        made += f"<h2>{words('Sizes')}</h2>{results.table((words('Size'), words('Pictures')), sizes)}"
    return made


def _tags(found: MetadataView, words: Words) -> str:
    if not found.tags:
        return ""
    rows = "".join(
        f'<tr data-row="1"><td>{escape(_cut(tag.text))}</td><td>{tag.count:,}</td>'
        f"<td>{escape(_cut(tag.folder))}</td></tr>"
        for tag in found.tags[:MOST_TAGS]
    )
    head = "".join(f"<th>{text}</th>" for text in (words("Tag"), words("Captions"), words("Folder")))
    more = found.all_tags - MOST_TAGS
    rest = results.said(words("and {n} more", n=f"{more:,}")) if more > 0 else ""
    return (
        f"<h2>{words('Tags')} ({found.all_tags:,})</h2>"
        f'<table class="k-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}'
    )


def _raw(found: MetadataView, words: Words) -> str:
    if not found.raw:
        return ""
    notes = {name: _cut(text) for name, text in found.raw.items()}
    text = json.dumps(notes, ensure_ascii=False, indent=1)
    if len(text) > MOST_RAW:
        text = text[:MOST_RAW] + " …"
    return (
        f"<details><summary>{words('Everything as it stands in the file')}</summary>"
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )
