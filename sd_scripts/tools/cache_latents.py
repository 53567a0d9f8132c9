"""Latents of a training's pictures into files: `python sd_scripts/tools/cache_latents.py --help`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import CacheLatentsOptions
from sd_scripts.tools.caching import Job, data_sets, parse_job, processes
from sd_scripts.tools.common import Ticker, guarded, say

if TYPE_CHECKING:
    from accelerate import PartialState

    from sd_scripts.data.dataset import DatasetGroup

PROG = "cache_latents.py"
OPTIONS = CacheLatentsOptions


def work(argv: Sequence[str]) -> None:
    """Encode what has no valid file yet. Raises UserError."""
    job = parse_job(OPTIONS, argv, PROG)
    groups = data_sets(job, latents=True)
    state = processes()
    made = encode(job, groups, state)
    total = sum(group.images for group in groups)
    if state.is_main_process:
        say(f"{made} pictures encoded here, {total - made} were done already or are another process's")


def encode(job: Job, groups: Sequence[DatasetGroup], state: PartialState) -> int:
    """Number of pictures that this process encoded."""
    import torch
    from torch import nn

    from sd_scripts.families.base import Family, Model
    from sd_scripts.families.identity import vae_identity
    from sd_scripts.families.sd import StableDiffusion
    from sd_scripts.families.sdxl import StableDiffusionXL
    from sd_scripts.models.loading import load_vae
    from sd_scripts.training.precision import resolve

    family: Family = StableDiffusionXL() if job.sdxl else StableDiffusion()
    options, device = job.config.model, state.device
    dtype = resolve(job.config.training, job.config.saving, device).vae(options.no_half_vae)
    source = options.vae or options.pretrained_model_name_or_path
    if not source:
        raise UserError("The base model is missing.", "pretrained_model_name_or_path")
    # Of the whole model only the VAE is read.
    vae = load_vae(str(source), dtype, "sdxl" if job.sdxl else "sd1").to(device).eval()
    model = Model(nn.Identity(), [], [], vae, "sdxl" if job.sdxl else "sd1", "epsilon", str(source))
    ticker = Ticker("encoded")
    made = 0
    with torch.no_grad():
        for group in groups:
            made += group.cache_latents(
                lambda pixels: family.encode_images(model, pixels),
                to_disk=True,
                batch_size=job.config.dataset.vae_batch_size,
                device=device,
                process_index=state.process_index,
                num_processes=state.num_processes,
                progress=ticker.at,
                wait=state.wait_for_everyone,
                family=family.name,
                encoder_id=vae_identity(model),
            )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return guarded(work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
