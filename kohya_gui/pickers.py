"""The browse dialog: folders and files of the machine the page runs on, inside the allowed roots, as HTML rows.

The page's script opens it, asks here for each folder, and sends back the chosen path; which files a browser may see at
all is decided by `Roots` alone.
"""

from html import escape
from typing import Any

from kohya_gui.localization import Words
from kohya_gui.paths import Entry, Listing, Roots
from kohya_gui.phrases import phrase
from sd_scripts.schema.errors import UserError

MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")
CONFIG_SUFFIXES = (".json", ".toml", ".safetensors")

# what a dialog may choose: the title, whether files and folders can be taken, and which files are listed
_KINDS: dict[str, tuple[str, bool, bool, tuple[str, ...]]] = {
    "folder": (phrase("Choose a folder"), False, True, ()),
    "model": (phrase("Choose a model file or folder"), True, True, MODEL_SUFFIXES),
    "file": (phrase("Choose a file"), True, False, ()),
    "weights": (phrase("Choose a file of weights"), True, False, MODEL_SUFFIXES),
    "target": (phrase("Save as"), False, False, MODEL_SUFFIXES),
    "open": (phrase("Open a configuration"), True, False, CONFIG_SUFFIXES),
    "save": (phrase("Save the configuration as"), False, False, (".json",)),
}


def size_text(count: int | None) -> str:
    """Bytes as people say them: 812 kB, 9.1 MB, 2.3 GB."""
    if count is None:
        return ""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def _row(entry: Entry, takes_files: bool, words: Words) -> str:
    side = size_text(entry.size)
    if entry.folder and entry.pictures:
        side = words("{n} pictures", n=entry.pictures)
    action = f'data-open="{escape(entry.path)}"' if entry.folder else f'data-pick="{escape(entry.path)}"'
    dead = "" if entry.folder or takes_files else " disabled"
    name = escape(entry.name) + ("/" if entry.folder else "")
    return f'<button class="k-row" {action}{dead}><span>{name}</span><small>{escape(side)}</small></button>'


def _foot(kind: str, listing: Listing, takes_folders: bool, suggestion: str, words: Words) -> str:
    here = escape(listing.path)
    if kind in ("save", "target"):
        return (
            f'<div class="k-foot"><input name="name" value="{escape(suggestion)}" aria-label="{words("File name")}">'
            f'<button class="k-main" data-pick="" data-folder="{here}">{words("Save here")}</button></div>'
        )
    if kind == "open":
        said = words("A file can also be dropped onto the form: a saved one, or a trained model to train like it.")
        button = f'<button data-upload="1">{words("From this computer")}</button>'
        return f'<div class="k-foot"><p class="k-quiet k-grow">{said}</p>{button}</div>'
    if takes_folders and listing.path:
        return (
            f'<div class="k-foot"><button class="k-main" data-pick="{here}">{words("Take this folder")}</button></div>'
        )
    return ""


def dialog(roots: Roots, words: Words, request: dict[str, Any]) -> dict[str, str]:
    """One view of the browse dialog.

    Args:
        roots: the folders that may be seen.
        words: the language.
        request: `path` (where to look; "" for the beginning), `kind` (see _KINDS), `name` (suggested file name).
    Returns:
        title and html; a path that cannot be shown gives the nearest view with the reason on top.
    """
    kind = str(request.get("kind") or "file")
    title, takes_files, takes_folders, suffixes = _KINDS.get(kind, _KINDS["file"])
    path, said = str(request.get("path") or ""), ""
    files = kind != "folder"
    try:
        listing = roots.listing(path or None, files=files, suffixes=suffixes)
    except UserError as error:
        said = f'<p class="k-said">{escape(words.error(error))}</p>'
        listing = _nearest(roots, path, files, suffixes)
    above = ""
    if listing.parent is not None:
        above = f'<button class="k-row" data-open="{escape(listing.parent)}"><span>..</span><small></small></button>'
    rows = "".join(_row(entry, takes_files, words) for entry in listing.entries)
    if not listing.entries:
        rows = f'<p class="k-quiet">{words("Nothing here that fits.")}</p>'
    if listing.cut:
        rows += f'<p class="k-quiet">{words("There is more; type the path instead.")}</p>'
    where = f'<p class="k-quiet k-where">{escape(listing.path) or words("Folders open to this page")}</p>'
    foot = _foot(kind, listing, takes_folders, str(request.get("name") or ""), words)
    return {"title": words(title), "html": f'{said}{where}<div class="k-rows">{above}{rows}</div>{foot}'}


def completions(roots: Roots, request: dict[str, Any], most: int = 30) -> list[str]:
    """Paths that begin as the typed one does: folders, and files where the field takes files.

    Args:
        roots: the folders that may be seen.
        request: `path` as typed so far, `kind` as in `dialog`.
        most: how many to give.
    """
    typed = str(request.get("path") or "")
    cut = max(typed.rfind("/"), typed.rfind("\\")) + 1
    folder, start = typed[:cut], typed[cut:].casefold()
    kind = str(request.get("kind") or "file")
    suffixes = _KINDS.get(kind, _KINDS["file"])[3]
    try:
        listing = roots.listing(folder, files=kind != "folder", suffixes=suffixes)
    except UserError:
        return []
    names = [entry.name + ("/" if entry.folder else "") for entry in listing.entries]
    return [folder + name for name in names if name.casefold().startswith(start)][:most]


def _nearest(roots: Roots, path: str, files: bool, suffixes: tuple[str, ...]) -> Listing:
    """The listing of the deepest existing folder above `path` that is allowed, else of the beginning."""
    try:
        real = roots.inside(path)
    except UserError:
        return roots.listing(None, files=files, suffixes=suffixes)
    for folder in real.parents:
        if folder.is_dir() and roots.allows(folder):
            return roots.listing(folder, files=files, suffixes=suffixes)
    return roots.listing(None, files=files, suffixes=suffixes)
