"""Change the notes in a .safetensors file: `python sd_scripts/tools/edit_metadata.py --model a.safetensors --set k=v`.

The tensors are copied as bytes: a model of any size takes hardly any memory.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import MAX_HEADER_BYTES, HeaderError, read_safetensors_header
from sd_scripts.schema.tools_inspect import EditMetadataOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing, replacing

PROG = "edit_metadata.py"
OPTIONS = EditMetadataOptions
THUMBNAIL = "modelspec.thumbnail"
_THUMBNAIL_SIDE = 256
_THUMBNAIL_QUALITY = 85
_LEGACY = "sshs_legacy_hash"
_CHUNK = 16 << 20
_ALIGNMENT = 8
_MEGABYTE = 1 << 20


def edited(notes: Mapping[str, str], options: EditMetadataOptions) -> dict[str, str]:
    """The notes with the changes that the options ask for: cleared, set from the file, removed, set, in this order.

    Raises:
        UserError: a change cannot be read, or a note to remove is not there.
    """
    made = {} if options.clear else dict(notes)
    if options.json:
        for key, value in _noted(Path(options.json)).items():
            if value is None:
                made.pop(key, None)
            else:
                made[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for key in options.remove or ():
        if key not in made and key not in notes:
            raise UserError(f"There is no note {key!r} to remove.", "remove")
        made.pop(key, None)
    for pair in options.set or ():
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise UserError(f"--set needs name=text, not {pair!r}.", "set", "Put texts with blanks in quotes.")
        made[key] = text
    if options.thumbnail:
        made[THUMBNAIL] = picture_url(Path(options.thumbnail))
    return made


def _noted(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.", "json") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}.", "json") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object of notes.", "json", 'Write {"name": "text"}.')
    return found


def picture_url(path: Path) -> str:
    """A picture as data URL, JPEG of at most 256 x 256. Raises UserError if it is no picture."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.", "thumbnail") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read.", "thumbnail") from error
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_THUMBNAIL_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def with_valid_hash(path: Path, before: Mapping[str, str], notes: dict[str, str]) -> dict[str, str]:
    """The notes with the short fingerprint of a network made anew, where it depends on what was changed.

    That fingerprint covers the header, with the `ss_*` notes in it; the long one covers the tensors alone.
    """

    def counting(found: Mapping[str, str]) -> dict[str, str]:
        return {key: value for key, value in found.items() if key.startswith("ss_")}

    if _LEGACY not in notes or counting(before) == counting(notes):
        return notes

    from sd_scripts.networks.hashes import streamed_hashes
    from sd_scripts.tensormap import open_tensors

    with open_tensors(path, "model") as source:
        entries = {name: (source.dtypes[name], source.shapes[name]) for name in source.names}
        return {**notes, _LEGACY: streamed_hashes(entries, source.raw, notes)[1]}


def write_with_notes(source: Path, target: Path, notes: Mapping[str, str]) -> None:
    """Write a .safetensors file again with other notes; the tensors and their order stay, byte for byte.

    Raises:
        UserError: the notes are too large, or no text that can be written, or the disk refuses.
    """
    # both files are closed before the new one takes its name, since Windows replaces no open file
    with replacing(target) as aside, open(source, "rb") as reader, open(aside, "wb") as writer:
        length = int.from_bytes(reader.read(8), "little")
        header = header_with(reader.read(length), notes)
        writer.write(len(header).to_bytes(8, "little") + header)
        ticker = Ticker("megabytes written", source.stat().st_size // _MEGABYTE)
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            ticker.at(reader.tell() // _MEGABYTE)


def header_with(header: bytes, notes: Mapping[str, str]) -> bytes:
    """A safetensors header with other notes, filled up as such headers are.

    Raises:
        UserError: the notes are too large, or no text that can be written.
    """
    table = json.loads(header)
    table.pop("__metadata__", None)
    table = {"__metadata__": dict(notes), **table} if notes else table
    try:
        made = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("The notes hold signs that are no text.", hint="Write them as UTF-8.") from error
    made += b" " * (-len(made) % _ALIGNMENT)
    if len(made) > MAX_HEADER_BYTES:
        raise UserError(f"The notes would take {len(made) // _MEGABYTE} MB; a file holds 100 MB of them.")
    return made


def work(options: EditMetadataOptions) -> None:
    """Change the notes and write the file, complete or not at all. Raises UserError."""
    source = Path(options.model)
    try:
        header = read_safetensors_header(source)
    except HeaderError as error:
        raise UserError(f"{source} cannot be read: {error}.", "model", "Only .safetensors files hold notes.") from error
    target = Path(options.save_to) if options.save_to else source
    if target.suffix != ".safetensors":
        raise UserError(f"save_to is {target}, but must end in .safetensors.", "save_to")
    if not (options.clear or options.json or options.remove or options.set or options.thumbnail):
        raise UserError("There is nothing to change.", hint="Give --set, --remove, --clear, --json or --thumbnail.")
    refuse_existing([target], options.overwrite)
    before = header.metadata
    notes = with_valid_hash(source, before, edited(before, options))
    write_with_notes(source, target, notes)
    changed = [key for key in {**before, **notes} if before.get(key) != notes.get(key)]
    say(f"{len(changed)} {'note' if len(changed) == 1 else 'notes'} changed, {len(notes)} in {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
