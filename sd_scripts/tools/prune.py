"""Make a model file smaller: `python sd_scripts/tools/prune.py model.ckpt pruned.safetensors --half`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import identify, single_file_version
from sd_scripts.schema.tools_models import PruneModelOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.models.writing import size_text, written

PROG = "prune.py"
OPTIONS = PruneModelOptions
_ENDINGS = (".safetensors", ".ckpt")
_KEPT = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.", "denoiser.")
# what the VAE's own training left behind
_LEFT_OUT = ("first_stage_model.loss.", "first_stage_model.model_ema.")
_VERSIONS = ("sd1", "sd2", "sdxl", "sdxl_refiner")
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of the file as it was
_NAMED = 5


def wanted(names: Iterable[str]) -> list[str]:
    """The entries of a model file that are the model: its parts, and the schedule, whose names have no dot."""
    return [name for name in names if "." not in name or (name.startswith(_KEPT) and not name.startswith(_LEFT_OUT))]


def checked(options: PruneModelOptions) -> tuple[Path, Path]:
    """The model and the file to write. Raises UserError."""
    source, target = Path(options.model_prune), Path(options.prune_output)
    if not source.is_file():
        what = "is a folder; only single files hold more than the model" if source.is_dir() else "does not exist"
        raise UserError(f"{source} {what}.", "model_prune")
    if target.suffix not in _ENDINGS:
        raise UserError(f"prune_output is {target}, but must end in .safetensors or .ckpt.", "prune_output")
    refuse_existing([target], options.overwrite)
    facts = identify(str(source))
    if facts.problem and facts.version not in _VERSIONS:
        raise UserError(f"{source} cannot be read: {facts.problem}.", "model_prune")
    return source, target


def work(options: PruneModelOptions) -> None:
    """Write the model without its ballast, complete or not at all. Raises UserError."""
    source, target = checked(options)

    import torch

    from sd_scripts.models.converting import write_tensors
    from sd_scripts.models.lazy import LazyFiles
    from sd_scripts.models.module_names import is_ballast

    files = LazyFiles()
    try:
        opened = files(source, "model_prune")
        version = single_file_version(opened.shapes)
        kept = wanted(opened.shapes)
        if version not in _VERSIONS or not any(name.startswith(_KEPT[0]) for name in kept):
            raise UserError(f"{source} is not a Stable Diffusion model.", "model_prune", "Choose a whole model file.")
        left = sorted(set(opened.shapes) - set(kept))
        before = size_text(source)
        unchanged = [name for name in kept if version in ("sd1", "sd2", "sdxl") and is_ballast(name, version)]
        with written(target):
            write_tensors(
                target,
                opened.take(kept),
                torch.float16 if options.half else None,
                files=files,
                unchanged=unchanged,
                metadata={key: text for key, text in files.opened[0].metadata.items() if key not in _HASHES},
                progress=Ticker("weights").at,
            )
    finally:
        files.close()
    if left:
        more = " ..." if len(left) > _NAMED else ""
        say(f"{len(left)} entries are left out: {', '.join(left[:_NAMED])}{more}")
    say(f"{before} became {size_text(target)}: {len(kept)} of {len(kept) + len(left)} entries written to {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
