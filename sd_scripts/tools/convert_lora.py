"""Rename what is in a LoRA file: `python sd_scripts/tools/convert_lora.py --model a.safetensors --to peft --save_to b`.

With `--to peft` diffusers reads the result, with `--to kohya` other programs read a LoRA that diffusers saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_inspect import ConvertLoraOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.report import report

PROG = "convert_lora.py"
OPTIONS = ConvertLoraOptions
_SOME_TENSORS = 50
_STYLES = {
    "kohya": "kohya's names",
    "kohya_diffusers": "kohya's names with diffusers' blocks",
    "peft": "PEFT's names",
    "diffusers": "diffusers' old names",
}


def work(options: ConvertLoraOptions) -> None:
    """Rename and write the result, complete or not at all. Raises UserError."""
    target = Path(options.save_to)
    as_folder = options.to == "peft" and not target.suffix
    if not as_folder and target.suffix != ".safetensors":
        raise UserError(
            f"save_to is {target}, but must end in .safetensors.", "save_to", "Only with --to peft it may be a folder."
        )

    import torch

    from sd_scripts.tensorfile import write_stream
    from sd_scripts.tools.lora.adapters import files_of, open_lora, write_adapters
    from sd_scripts.tools.lora.rename import made, renamed

    refuse_existing(files_of(target) if as_folder else [target], options.overwrite)
    dtypes = {None: None, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    file = open_lora(Path(options.model), "model")
    result = renamed(file, options.to, options.family, dtypes[options.save_precision])
    ticker, done = Ticker("tensors", len(result.pieces)), 0

    def make(name: str) -> torch.Tensor:
        nonlocal done
        ticker.at(done)
        done += 1
        if done % _SOME_TENSORS == 0:
            file.forget()
        return made(file, result.pieces[name])

    if as_folder:
        write_adapters(target, result.pieces, make, result.metadata)
    else:
        entries = {name: (piece.dtype, piece.shape) for name, piece in result.pieces.items()}
        with report.writing(target):
            write_stream(target, entries, make, result.metadata)
    ticker.at(done)
    say(f"{done} tensors, {_STYLES[result.source]} -> {_STYLES[options.to]}, written to {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
