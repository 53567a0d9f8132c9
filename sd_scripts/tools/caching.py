"""What the two caching scripts share: the options and data sets of the training that the files are for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.fields import convert
from sd_scripts.schema.option import section_fields
from sd_scripts.schema.parse import build_parser, parse
from sd_scripts.tools.common import add_argument, say

if TYPE_CHECKING:
    from accelerate import PartialState

    from sd_scripts.data.dataset import DatasetGroup

HEEDED = ("model", "dataset", "captions", "training", "validation", "run")


@dataclass(frozen=True)
class Job:
    """The training's options, and the two of the script itself."""

    config: TrainConfig
    sdxl: bool
    skip_existing: bool


def parser(section: type, prog: str, sdxl: bool = False) -> argparse.ArgumentParser:
    """All flags: those of the script and those of training, so that a training's command line can be used as it is."""
    whole = build_parser("sdxl_train_network" if sdxl else "train_network")
    whole.prog = prog
    whole.description = section.__doc__
    group = whole.add_argument_group("This script")
    for field in section_fields(section):
        add_argument(group, field)
    return whole


def parse_job(section: type, argv: Sequence[str], prog: str) -> Job:
    """The options from the arguments.

    Raises:
        UserError: as `parse`; what a training needs besides model and pictures is not asked for.
        SystemExit: after --help and --output_config.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    fields = {field.key: field for field in section_fields(section)}
    for field in fields.values():
        add_argument(own, field)
    given, rest = own.parse_known_args(list(argv))
    values = {key: convert(fields[key], value) for key, value in vars(given).items()}
    sdxl = bool(values.get("sdxl", False))
    if {"-h", "--help"} & set(rest):
        parser(section, prog, sdxl).parse_args(["--help"])
    config = parse("sdxl_train_network" if sdxl else "train_network", rest, HEEDED)
    for note in config.warnings:
        say(f"note: {note.message} {note.hint}".strip())
    return Job(config, sdxl, bool(values.get("skip_existing", False)))


def data_sets(job: Job, *, latents: bool) -> list[DatasetGroup]:
    """The data sets of the training, those for validation last; every kind, as any trainer may use the files.

    Raises UserError, also where pictures (`latents`) or captions (otherwise) are not the same at every use.
    """
    from sd_scripts.data.config import build_blueprint
    from sd_scripts.data.dataset import build
    from sd_scripts.data.spec import bucket_step_multiple

    config = job.config
    dataset = replace(
        config.dataset,
        cache_latents=latents,
        cache_latents_to_disk=latents,
        skip_cache_check=config.dataset.skip_cache_check or job.skip_existing,
    )
    blueprint = build_blueprint(
        dataset,
        config.captions,
        config.validation,
        control_images=not config.loss.masked_loss,
        allow_plugins=config.run.allow_plugins,
        bucket_step_multiple=bucket_step_multiple(config.command),
        cache_text=not latents,
    )
    groups = [group for group in build(blueprint, config.training.seed or 0) if group is not None]
    for group in groups:
        for text in group.warnings:
            say(f"note: {text}")
    return groups


def processes() -> PartialState:
    """This process among those of `accelerate launch`, and its device."""
    import torch
    from accelerate import PartialState

    # Without a GPU accelerate would take every process for the only one, unless told so.
    return PartialState(cpu=not torch.cuda.is_available())
