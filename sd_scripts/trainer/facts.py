"""What a run says about itself: the printed tables, the start event, the metadata of its files."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sd_scripts.data.dataset import DatasetGroup
from sd_scripts.data.debug import inspect_batches
from sd_scripts.data.loader import BatchLoader
from sd_scripts.data.report import dataset_facts, report_tables
from sd_scripts.families.base import Family, Model
from sd_scripts.methods.base import Method
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.training.metadata import RunFacts, Sections, at_save, build_metadata
from sd_scripts.training.modelspec import modelspec
from sd_scripts.training.optimizers import CreatedOptimizer
from sd_scripts.training.plan import RunPlan

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """Python's and the packages' versions, for the start event."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def show_dataset(reporter: Reporter, group: DatasetGroup, plan: RunPlan) -> None:
    """Print folders and buckets, and warn of everything odd about them, before anything heavy loads."""
    for table in report_tables(group):
        reporter.table(table.title, table.columns, table.rows)
    steps = f"{plan.total_steps} steps in {plan.epochs} epochs of {plan.steps_per_epoch}"
    reporter.say(f"{group.images} pictures, {group.repeated_images} with repeats, {steps}")
    for warning in group.warnings:
        reporter.warn("data", warning, key="train_data_dir")


def inspect_dataset(group: DatasetGroup, folder: Path, reporter: Reporter, epochs: int) -> None:
    """Go through the first batches of up to two epochs as the trainer would see them; pictures go into `folder`."""
    if not reporter.is_main:
        return
    loader = BatchLoader(group)
    written = 0
    for text, files in inspect_batches(loader, folder, epochs=min(epochs, 2)):
        reporter.say(text)
        written += len(files)
    reporter.say(f"{written} pictures as the trainer sees them are in {folder}; nothing was trained")


def plan_event(config: TrainConfig, group: DatasetGroup, plan: RunPlan) -> dict[str, Any]:
    """The part of the `start` event that is known once the pictures are scanned."""
    return {
        "versions": versions(),
        "command": config.command,
        "total_steps": plan.total_steps,
        "total_epochs": plan.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "images": group.images,
        "repeats_images": group.repeated_images,
        "buckets": [{"size": list(bucket.size), "count": bucket.count} for bucket in group.buckets],
        "output_name": config.saving.output_name,
        "output_dir": config.saving.output_dir,
        "processes": plan.processes,
        "total_batch_size": plan.total_batch_size,
    }


def _sections(config: TrainConfig) -> Sections:
    return Sections(
        model=config.model,
        dataset=config.dataset,
        captions=config.captions,
        training=config.training,
        optimizer=config.optimizer,
        loss=config.loss,
        saving=config.saving,
        validation=config.validation,
    )


def metadata_maker(
    config: TrainConfig,
    family: Family,
    model: Model,
    method: Method,
    group: DatasetGroup,
    validation_images: int,
    plan: RunPlan,
    created: CreatedOptimizer,
    scheduler_name: str,
    seed: int,
) -> Callable[[int, int, float], dict[str, str]]:
    """A function (step, epoch, time) -> all notes of one file. Hashing the base model happens here, once."""
    kind = family.kind(model)
    facts = RunFacts(
        session_id=random.SystemRandom().randrange(2**32),
        started_at=time.time(),
        train_images=group.num_train_images,
        reg_images=group.num_reg_images,
        batches_per_epoch=group.batches_per_epoch,
        epochs=plan.epochs,
        max_train_steps=plan.total_steps,
        total_batch_size=plan.total_batch_size,
        optimizer=created.label,
        kind=kind,
        datasets=dataset_facts(group),
        from_config=group.blueprint.from_file,
        validation_images=validation_images,
        lr_scheduler=scheduler_name,
        seed=seed,
    )
    base = build_metadata(_sections(config), facts, method.metadata()) if method.notes == "all" else {}
    first = group.datasets[0].spec.bucketing if group.datasets else None

    def make(step: int, epoch: int, when: float) -> dict[str, str]:
        if method.notes == "none":
            return {}
        spec = modelspec(
            config.saving,
            kind,
            timestamp=when,
            resolution=config.dataset.resolution or (first.resolution if first else None),
            clip_skip=config.model.clip_skip,
            min_timestep=config.loss.min_timestep,
            max_timestep=config.loss.max_timestep,
            adapter=method.adapter,
        )
        if method.notes == "modelspec":
            return spec
        return at_save(
            base, steps=step, epoch=epoch, finished_at=when, modelspec=spec, no_metadata=config.saving.no_metadata
        )

    return make
