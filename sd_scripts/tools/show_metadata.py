"""What is noted in a .safetensors file: `python sd_scripts/tools/show_metadata.py --model file.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import HeaderError, read_safetensors_header
from sd_scripts.schema.tools_inspect import ShowMetadataOptions
from sd_scripts.tools.common import run, say

PROG = "show_metadata.py"
OPTIONS = ShowMetadataOptions
OTHERS = (".ckpt", ".pt", ".pth", ".bin")


def work(options: ShowMetadataOptions) -> None:
    """Print the notes as JSON, sorted by key. Raises UserError for a file that is no .safetensors."""
    path = Path(options.model)
    if path.suffix.lower() in OTHERS and path.is_file():
        raise UserError(
            f"{path} has no metadata: only .safetensors files hold any.", "model", "Name a .safetensors file."
        )
    try:
        header = read_safetensors_header(options.model)
    except HeaderError as error:
        raise UserError(f"{options.model} cannot be read: {error}.", "model") from error
    if not header.metadata:
        say(f"No metadata in {options.model}.")
        return
    # ASCII only, as the known script prints it: other programs read this output
    say(json.dumps(header.metadata, indent=4, sort_keys=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
