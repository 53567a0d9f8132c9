"""Text encoder outputs of an SDXL training into files: `cache_text_encoder_outputs.py --sdxl --help`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools import CacheTextOptions
from sd_scripts.tools.caching import Job, data_sets, parse_job, processes
from sd_scripts.tools.common import Ticker, guarded, say

if TYPE_CHECKING:
    from accelerate import PartialState

    from sd_scripts.data.dataset import DatasetGroup

PROG = "cache_text_encoder_outputs.py"
OPTIONS = CacheTextOptions


def work(argv: Sequence[str]) -> None:
    """Encode the captions that have no valid file yet. Raises UserError."""
    job = parse_job(OPTIONS, argv, PROG)
    if not job.sdxl:
        raise UserError(
            "Only SDXL trainings keep text encoder outputs.", "sdxl", "Give --sdxl, if the model is an SDXL one."
        )
    groups = data_sets(job, latents=False)
    state = processes()
    made = encode(job, groups, state)
    if state.is_main_process:
        say(f"{made} captions encoded here; {sum(group.images for group in groups)} pictures in all")


def encode(job: Job, groups: Sequence[DatasetGroup], state: PartialState) -> int:
    """Number of captions that this process encoded."""
    import torch

    from sd_scripts.families.identity import text_identity
    from sd_scripts.families.sdxl import StableDiffusionXL
    from sd_scripts.training.precision import resolve

    config, device = job.config, state.device
    precision = resolve(config.training, config.saving, device)
    family = StableDiffusionXL()
    model = family.load(config.model, precision.weights, "cpu")
    torch.nn.Module.to(model.unet, "meta")
    for encoder in model.text_encoders:
        encoder.to(device).eval()
    lowered = precision.weights != torch.float32

    def outputs(captions: list[str]) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad(), torch.autocast(device.type, precision.weights, enabled=lowered):
            return family.text_outputs(model, captions, options=config.model)

    made = 0
    for group in groups:
        made += group.cache_text_outputs(
            outputs,
            to_disk=True,
            batch_size=config.dataset.vae_batch_size,
            process_index=state.process_index,
            num_processes=state.num_processes,
            progress=Ticker("encoded").at,
            wait=state.wait_for_everyone,
            encoder_id=text_identity(model),
            max_token_length=config.model.max_token_length,
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return guarded(work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
