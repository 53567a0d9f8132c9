"""Mix models: `python sd_scripts/tools/merge_models.py --models a.safetensors b.safetensors --output c.safetensors`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_models import MergeModelsOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sd_scripts.models.weights import Weights

PROG = "merge_models.py"
OPTIONS = MergeModelsOptions
_UNET = "model.diffusion_model."
_LEFT_OUT = ("model_ema.",)  # a second copy of the U-Net that only further training by its maker would need
_NAMED = 5


def checked(options: MergeModelsOptions) -> tuple[list[Path], list[float], Path]:
    """Model files, their ratios, and the file to write. Raises UserError."""
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


def merge(
    models: Sequence[Weights],
    ratios: Sequence[float],
    *,
    unet_only: bool,
    device: torch.device,
    precision: torch.dtype,
    saving: torch.dtype,
) -> tuple[dict[str, Tensor], list[str]]:
    """The weighted sums, and the names that not every model has or that are left out.

    What a model lacks is made of the others, their ratios scaled up to the same sum. Whole numbers (positions) are
    those of the first model that has them.

    Raises:
        UserError: a weight has different shapes.
    """
    names = list(dict.fromkeys(name for model in models for name in model.shapes))
    total, skipped = sum(ratios), []
    merged: dict[str, Tensor] = {}
    ticker = Ticker("weights", len(names))
    for number, name in enumerate(names):
        ticker.at(number)
        having = [(model, ratio) for model, ratio in zip(models, ratios) if name in model.shapes]
        if len(having) < len(models) or name.startswith(_LEFT_OUT):
            skipped.append(name)
        if name.startswith(_LEFT_OUT):
            continue
        shapes = sorted({model.shapes[name] for model, _ in having})
        if len(shapes) > 1:
            raise UserError(
                f"{name} has the shapes {' and '.join(str(list(shape)) for shape in shapes)}.",
                "models",
                "Only models of one kind can be mixed.",
            )
        first = having[0][0].take([name])[name]
        if not first.is_floating_point():
            merged[name] = first
        elif unet_only and not name.startswith(_UNET):
            if name in models[0].shapes:
                merged[name] = first.to(saving)
        else:
            share = sum(ratio for _, ratio in having)
            scale = total / share if share else 1.0
            mixed = first.to(device, precision) * (having[0][1] * scale)
            for model, ratio in having[1:]:
                mixed += model.take([name])[name].to(device, precision) * (ratio * scale)
            merged[name] = mixed.to("cpu", saving)
    return merged, skipped


def work(options: MergeModelsOptions) -> None:
    """Mix the models and write the result, complete or not at all. Raises UserError."""
    paths, ratios, target = checked(options)

    import torch

    from sd_scripts.models.weights import open_weights
    from sd_scripts.tensorfile import write_safetensors, write_torch

    dtypes = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device is {options.device!r}, which this computer does not have.", "device") from error
    if abs(sum(ratios) - 1) > 1e-3:
        say(f"note: the ratios add up to {sum(ratios):g}, not to 1")
    for path, ratio in zip(paths, ratios):
        say(f"{ratio:g} of {path}")
    models = [open_weights(path, "models") for path in paths]
    merged, skipped = merge(
        models,
        ratios,
        unet_only=options.unet_only,
        device=device,
        precision=dtypes[options.precision],
        saving=dtypes[options.saving_precision],
    )
    if skipped:
        shown = skipped if options.show_skipped else skipped[:_NAMED]
        say(f"{len(skipped)} weights are left out or not in every model: {', '.join(shown)}")
    if target.suffix == ".ckpt":
        write_torch(target, {"state_dict": merged})
    else:
        write_safetensors(target, merged)
    say(f"{len(merged)} weights written to {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
