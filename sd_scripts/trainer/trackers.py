"""TensorBoard and Weights & Biases, through accelerate; both optional."""

from __future__ import annotations

import importlib.util
import os
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sd_scripts.methods.base import ScalarNames
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.logging import LoggingOptions

_INSTALL = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}


def wanted_trackers(options: LoggingOptions) -> list[str]:
    """Names for accelerate. A log folder alone means TensorBoard.

    Raises UserError when a package is missing or TensorBoard has no folder.
    """
    chosen = options.log_with or ("tensorboard" if options.logging_dir else None)
    names = {"all": ["tensorboard", "wandb"], None: []}.get(chosen, [chosen or ""])
    if "tensorboard" in names and not options.logging_dir:
        raise UserError(
            f"log_with {options.log_with} needs logging_dir.", "logging_dir", "Choose a folder for the logs."
        )
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log_with {name} needs the package {name}.", "log_with", f"Install it: {_INSTALL[name]}")
    return names


def log_folder(options: LoggingOptions, now: float | None = None) -> Path | None:
    """`<logging_dir>/<log_prefix><YYYYmmddHHMMSS>`, or None without a log folder."""
    if not options.logging_dir:
        return None
    stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(now))
    return Path(options.logging_dir) / f"{options.log_prefix or ''}{stamp}"


def start_trackers(
    accelerator: Accelerator, options: LoggingOptions, settings: Mapping[str, Any], project: str = "network_train"
) -> None:
    """Open the trackers; `settings` go along with --log_config only. Raises UserError for an unreadable file.

    `project` is the name where log_tracker_name gives none.
    """
    if not accelerator.is_main_process or not accelerator.log_with:
        return
    init: dict[str, Any] = {}
    if options.log_tracker_config:
        try:
            init = tomllib.loads(Path(options.log_tracker_config).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"The tracker settings '{options.log_tracker_config}' cannot be read: {error}.", "log_tracker_config"
            ) from error
    if options.wandb_run_name:
        init.setdefault("wandb", {})["name"] = options.wandb_run_name
    if options.wandb_api_key:
        os.environ["WANDB_API_KEY"] = options.wandb_api_key  # wandb's own door for it; never printed or saved
    config = {key: str(value) for key, value in settings.items()} if options.log_config else None
    accelerator.init_trackers(options.log_tracker_name or project, config=config, init_kwargs=init)


def log_epoch(accelerator: Accelerator, average: float, epoch: int, step: int) -> None:
    """The average loss of an epoch: over epochs in TensorBoard, as sd-scripts' users know it.

    Weights & Biases drops figures whose step lies before the last one, so there it stands at the optimizer step.
    """
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.log({"loss/epoch": average, "epoch": epoch}, step=step)
        else:
            tracker.log({"loss/epoch": average}, step=epoch)


def step_scalars(
    loss: float,
    average: float,
    rates: Mapping[str, float],
    adapted: Mapping[str, float],
    norms: Mapping[str, float] | None,
    names: ScalarNames,
) -> dict[str, float]:
    """One step's figures under the names that sd-scripts' users have in their dashboards."""
    scalars = {names.loss: loss, "loss/average": average}
    scalars.update({f"lr/{name}" if names.rate is None else names.rate: rate for name, rate in rates.items()})
    found = {f"lr/d*lr/{name}" if names.rate is None else "lr/d*lr": rate for name, rate in adapted.items()}
    scalars.update(found)
    scalars.update({f"max_norm/{name}": value for name, value in (norms or {}).items()})
    return scalars
