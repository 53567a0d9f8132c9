"""Mix models: `python sd_scripts/tools/merge_models.py --models a.safetensors b.safetensors --output c.safetensors`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_models import MergeModelsOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.models.writing import size_text, written

PROG = "merge_models.py"
OPTIONS = MergeModelsOptions
_NAMED = 5


def checked(options: MergeModelsOptions) -> tuple[list[Path], list[float], Path]:
    """Models, their ratios, and the file to write. Raises UserError."""
    models = [Path(model) for model in options.models or ()]
    if not models:
        raise UserError("models is missing.", "models", "Give --models and the files to mix.")
    if not options.output:
        raise UserError("output is missing.", "output", "Give --output and the file to write.")
    target = Path(options.output)
    if target.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"output is {target}, but must end in .safetensors or .ckpt.", "output")
    ratios = options.ratios or [1 / len(models)] * len(models)
    if len(ratios) != len(models):
        raise UserError(f"There are {len(ratios)} ratios for {len(models)} models.", "ratios", "Give one for each.")
    refuse_existing([target], options.overwrite)
    return models, ratios, target


def work(options: MergeModelsOptions) -> None:
    """Mix the models and write the result, complete or not at all. Raises UserError."""
    paths, ratios, target = checked(options)

    import torch

    from sd_scripts.tools.lora.device import computing_device
    from sd_scripts.tools.models.mixing import Mixture, open_all

    dtypes = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    device = computing_device(options.device)
    if abs(sum(ratios) - 1) > 1e-3:
        say(f"note: the ratios add up to {sum(ratios):g}, not to 1")
    for path, ratio in zip(paths, ratios):
        say(f"{ratio:g} of {path}")
    with open_all(paths) as models:
        precision, saving = dtypes[options.precision], dtypes[options.saving_precision]
        mixture = Mixture(models, ratios, options.unet_only, device, precision, saving)
        skipped = mixture.skipped
        if skipped:
            shown = skipped if options.show_skipped else skipped[:_NAMED]
            say(f"{len(skipped)} weights are left out or not in every model: {', '.join(shown)}")
        with written(target):
            count = mixture.write(target, Ticker("weights").at)
    say(f"{count} weights written to {target} ({size_text(target)})")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
