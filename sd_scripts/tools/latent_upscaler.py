"""Double pictures by a network on latents: `python sd_scripts/tools/latent_upscaler.py --help`.

The network is a TorchScript file: it brings its own structure, and takes latents [n, 4, h, w], scaled as a U-Net sees
them, to [n, 4, 2h, 2w].
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import IMAGE_EXTENSIONS
from sd_scripts.schema.tools import LatentUpscalerOptions
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import refuse_existing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

PROG = "latent_upscaler.py"
OPTIONS = LatentUpscalerOptions
SCALE = 0.18215
_STRIDE = 8


def load_network(path: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network of a TorchScript file, tried out once.

    Raises:
        UserError: no such file, only weights without the structure they belong to, or no network that doubles latents.
    """
    import torch

    if not Path(path).is_file():
        raise UserError(f"There is no file {path}.", "weights")
    try:
        network: Any = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is no TorchScript file.",
            "weights",
            "A file of weights alone does not say what network they belong to: save the network by torch.jit.script.",
        ) from error
    try:
        with torch.no_grad():
            found = tuple(network(torch.zeros(1, 4, 8, 8, device=device)).shape)
    except RuntimeError as error:
        raise UserError(f"The network in {path} does not take latents [n, 4, h, w].", "weights") from error
    if found != (1, 4, 16, 16):
        raise UserError(f"The network in {path} makes {list(found)} of [1, 4, 8, 8], not [1, 4, 16, 16].", "weights")
    return lambda latents: network(latents)


def batches(pictures: Sequence[Path], size: int) -> list[list[Path]]:
    """Pictures of one size together, as a network takes only such."""
    from sd_scripts.data.image import picture_size

    by_size: dict[tuple[int, int], list[Path]] = {}
    for path in pictures:
        by_size.setdefault(picture_size(path), []).append(path)
    return [same[start : start + size] for same in by_size.values() for start in range(0, len(same), size)]


def pixels_of(path: Path) -> np.ndarray:
    """RGB pixels whose sides are multiples of 8; what is over is cut off evenly."""
    from sd_scripts.data.image import load_picture

    pixels = load_picture(path).pixels
    height, width = (side // _STRIDE * _STRIDE for side in pixels.shape[:2])
    if not height or not width:
        raise UserError(f"{path} is smaller than 8 pixels.", "image_pattern")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def work(options: LatentUpscalerOptions) -> None:
    """Write the large pictures. Raises UserError."""
    for key in ("vae_path", "weights", "image_pattern"):
        if not getattr(options, key):
            raise UserError(f"{key} is missing.", key, f"Give --{key}.")
    named = sorted(Path(name) for name in glob.glob(str(options.image_pattern), recursive=True))
    pictures = [path for path in named if path.suffix.lower() in IMAGE_EXTENSIONS]
    if not pictures:
        raise UserError(f"No picture fits {options.image_pattern}.", "image_pattern")
    output = Path(options.output_dir)
    targets = {path: output / f"{path.stem}.png" for path in pictures}
    plain = {path: output / f"{path.stem}_interpolated.png" for path in pictures if options.debug}
    refuse_existing([*targets.values(), *plain.values()], options.overwrite)

    import torch

    from sd_scripts.data.image import resize, to_tensor
    from sd_scripts.models.loading import load_vae
    from sd_scripts.tools.pictures import save

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(str(options.weights), device)
    vae = load_vae(str(options.vae_path), torch.float32).to(device).eval()
    ticker, done = Ticker("upscaled", len(pictures)), 0
    for batch in batches(pictures, options.batch_size):
        pixels = [pixels_of(path) for path in batch]
        with torch.no_grad():
            images = torch.stack([to_tensor(one) for one in pixels]).to(device)
            parts = images.split(options.vae_batch_size)
            latents = torch.cat([vae.encode(part).latent_dist.mode() for part in parts])
            large = network(latents * SCALE) / SCALE
            decoded = torch.cat([vae.decode(part).sample.cpu() for part in large.split(options.vae_batch_size)])
        if not torch.isfinite(decoded).all():
            raise UserError(f"The network gave NaN or infinite values for {batch[0]}.", "weights")
        for path, made, before in zip(batch, decoded, pixels, strict=True):
            save(((made.clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(1, 2, 0).numpy(), targets[path])
            if options.debug:
                save(resize(before, (before.shape[1] * 2, before.shape[0] * 2), "lanczos"), plain[path])
        done += len(batch)
        ticker.at(done)
    say(f"{len(pictures)} pictures written to {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
