"""The notes inside a trained file: what it was trained on and how (`ss_*`), under the names other programs read.

All values are texts. Nothing is copied that was not named here, so tokens and full paths never get in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_scripts.networks.hashes import model_hash, network_hashes, sha256_of_file, with_hashes
from sd_scripts.schema.dataset import CaptionOptions, DatasetOptions
from sd_scripts.schema.loss import LossOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.schema.validation import ValidationOptions
from sd_scripts.tensorfile import write_safetensors

__all__ = [
    "MINIMUM_KEYS",
    "RunFacts",
    "Sections",
    "at_save",
    "base_model_version",
    "build_metadata",
    "model_hash",
    "network_hashes",
    "sha256_of_file",
    "with_hashes",
    "write_safetensors",
]

# What stays with --no_metadata: programs need it to apply the network rightly.
MINIMUM_KEYS = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
UNKNOWN_COMMIT = "(unknown)"


@dataclass(frozen=True)
class Sections:
    """The option sections that metadata is written from."""

    model: ModelOptions
    dataset: DatasetOptions
    captions: CaptionOptions
    training: TrainingOptions
    optimizer: OptimizerOptions
    loss: LossOptions
    saving: SavingOptions
    validation: ValidationOptions


@dataclass(frozen=True)
class RunFacts:
    """What is only known once a run is set up.

    `kind` is the family's (v2, v_param, is_sdxl); `optimizer` reads `module.Class(k=v,...)`; `datasets` has
    one entry per dataset with the keys of `ss_datasets` (batch_size_per_device, num_train_images,
    num_reg_images, resolution [w, h], enable_bucket, min_bucket_reso, max_bucket_reso, tag_frequency,
    bucket_info, subsets); `from_config` says that they come from a dataset_config.
    """

    session_id: int
    started_at: float
    train_images: int
    reg_images: int
    batches_per_epoch: int
    epochs: int
    max_train_steps: int
    total_batch_size: int
    optimizer: str
    kind: Mapping[str, bool] = field(default_factory=dict)
    datasets: Sequence[Mapping[str, Any]] = ()
    from_config: bool = False
    validation_images: int = 0
    lr_scheduler: str | None = None
    seed: int | None = None
    commit: str = UNKNOWN_COMMIT


def base_model_version(kind: Mapping[str, bool]) -> str:
    """`sd_v1`, `sd_v1_v`, `sd_v2`, `sd_v2_v` or `sdxl_base_v1-0`."""
    if kind.get("is_sdxl"):
        return "sdxl_base_v1-0"
    return ("sd_v2" if kind.get("v2") else "sd_v1") + ("_v" if kind.get("v_param") else "")


def build_metadata(sections: Sections, facts: RunFacts, network: Mapping[str, str]) -> dict[str, str]:
    """All `ss_*` entries that are the same for every file of a run; `network` are the method's own."""
    entries: dict[str, Any] = {
        **_run_entries(sections, facts),
        **_training_entries(sections, facts),
        **_loss_entries(sections.loss, sections.captions),
        **_newer_entries(sections, facts),
        **(_config_entries(facts) if facts.from_config else _folder_entries(sections, facts)),
        **_model_entries("sd_model", sections.model.pretrained_model_name_or_path),
        **(_model_entries("vae", sections.model.vae) if sections.model.vae else {}),
        **network,
    }
    return {key: str(value) for key, value in entries.items()}


def at_save(
    metadata: Mapping[str, str],
    *,
    steps: int,
    epoch: int,
    finished_at: float,
    modelspec: Mapping[str, str] | None = None,
    no_metadata: bool = False,
) -> dict[str, str]:
    """Metadata for one file: with step, epoch and time, or cut down to the minimum; and with the modelspec."""
    entries = {
        **metadata,
        "ss_training_finished_at": str(finished_at),
        "ss_steps": str(steps),
        "ss_epoch": str(epoch),
    }
    if no_metadata:
        entries = {key: value for key, value in entries.items() if key in MINIMUM_KEYS}
    return {**entries, **(modelspec or {})}


def _run_entries(sections: Sections, facts: RunFacts) -> dict[str, Any]:
    saving = sections.saving
    return {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started_at,
        "ss_output_name": saving.output_name,
        "ss_training_comment": saving.training_comment,
        "ss_sd_scripts_commit_hash": facts.commit,
        "ss_num_train_images": facts.train_images,
        "ss_num_reg_images": facts.reg_images,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": facts.epochs,
        "ss_max_train_steps": facts.max_train_steps,
        "ss_v2": bool(facts.kind.get("v2")),
        "ss_base_model_version": base_model_version(facts.kind),
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.lr_scheduler or sections.optimizer.lr_scheduler,
    }


def _training_entries(sections: Sections, facts: RunFacts) -> dict[str, Any]:
    training, optimizer, model = sections.training, sections.optimizer, sections.model
    rates = optimizer.text_encoder_lr
    # Adafactor that finds its own rate uses none of these; where it began stands in ss_lr_scheduler.
    found = (facts.lr_scheduler or "").startswith("adafactor:")
    return {
        "ss_learning_rate": None if found else optimizer.learning_rate,
        "ss_text_encoder_lr": None if found or not rates else rates[0] if len(rates) == 1 else list(rates),
        "ss_unet_lr": None if found else optimizer.unet_lr,
        "ss_lr_warmup_steps": optimizer.lr_warmup_steps,
        "ss_max_grad_norm": optimizer.max_grad_norm,
        "ss_gradient_checkpointing": bool(training.gradient_checkpointing),
        "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
        "ss_mixed_precision": training.mixed_precision,
        "ss_full_fp16": bool(training.full_fp16),
        "ss_seed": training.seed if facts.seed is None else facts.seed,
        "ss_lowram": bool(training.lowram),
        "ss_clip_skip": model.clip_skip,
        "ss_max_token_length": model.max_token_length,
        "ss_cache_latents": bool(sections.dataset.cache_latents),
        "ss_face_crop_aug_range": _pair(sections.dataset.face_crop_aug_range),
        "ss_prior_loss_weight": sections.dataset.prior_loss_weight,
    }


def _loss_entries(loss: LossOptions, captions: CaptionOptions) -> dict[str, Any]:
    return {
        "ss_noise_offset": loss.noise_offset,
        "ss_multires_noise_iterations": loss.multires_noise_iterations,
        "ss_multires_noise_discount": loss.multires_noise_discount,
        "ss_adaptive_noise_scale": loss.adaptive_noise_scale,
        "ss_zero_terminal_snr": bool(loss.zero_terminal_snr),
        "ss_min_snr_gamma": loss.min_snr_gamma,
        "ss_ip_noise_gamma": loss.ip_noise_gamma,
        "ss_debiased_estimation": bool(loss.debiased_estimation_loss),
        "ss_caption_dropout_rate": captions.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs,
        "ss_caption_tag_dropout_rate": captions.caption_tag_dropout_rate,
    }


def _newer_entries(sections: Sections, facts: RunFacts) -> dict[str, Any]:
    """Entries that the newest trainers have and those of 2024 had not."""
    loss, validation, training = sections.loss, sections.validation, sections.training
    return {
        "ss_num_validation_images": facts.validation_images,
        "ss_noise_offset_random_strength": bool(loss.noise_offset_random_strength),
        "ss_ip_noise_gamma_random_strength": bool(loss.ip_noise_gamma_random_strength),
        "ss_loss_type": loss.loss_type,
        "ss_huber_schedule": loss.huber_schedule,
        "ss_huber_scale": loss.huber_scale,
        "ss_huber_c": loss.huber_c,
        "ss_fp8_base": bool(training.fp8_base),
        "ss_fp8_base_unet": bool(training.fp8_base_unet),
        "ss_validation_seed": validation.validation_seed,
        "ss_validation_split": validation.validation_split,
        "ss_max_validation_steps": validation.max_validation_steps,
        "ss_validate_every_n_epochs": validation.validate_every_n_epochs,
        "ss_validate_every_n_steps": validation.validate_every_n_steps,
        "ss_resize_interpolation": sections.dataset.resize_interpolation,
    }


def _folder_entries(sections: Sections, facts: RunFacts) -> dict[str, Any]:
    """Entries of a run over folders or one metadata file, which is a single dataset."""
    dataset, captions = sections.dataset, sections.captions
    entry: Mapping[str, Any] = facts.datasets[0] if facts.datasets else {}
    subsets = entry.get("subsets", ())
    bucketing = bool(entry.get("enable_bucket", dataset.enable_bucket))
    resolution = entry.get("resolution")
    return {
        "ss_batch_size_per_device": dataset.train_batch_size,
        "ss_total_batch_size": facts.total_batch_size,
        "ss_resolution": None if resolution is None else tuple(resolution),
        "ss_color_aug": bool(dataset.color_aug),
        "ss_flip_aug": bool(dataset.flip_aug),
        "ss_random_crop": bool(dataset.random_crop),
        "ss_shuffle_caption": bool(captions.shuffle_caption),
        "ss_enable_bucket": bucketing,
        "ss_bucket_no_upscale": bool(dataset.bucket_no_upscale),
        "ss_min_bucket_reso": entry.get("min_bucket_reso", dataset.min_bucket_reso) if bucketing else None,
        "ss_max_bucket_reso": entry.get("max_bucket_reso", dataset.max_bucket_reso) if bucketing else None,
        "ss_keep_tokens": captions.keep_tokens,
        "ss_dataset_dirs": json.dumps(_folders(subset for subset in subsets if not subset.get("is_reg"))),
        "ss_reg_dataset_dirs": json.dumps(_folders(subset for subset in subsets if subset.get("is_reg"))),
        "ss_tag_frequency": json.dumps(entry.get("tag_frequency", {})),
        "ss_bucket_info": json.dumps(entry.get("bucket_info")),
    }


def _config_entries(facts: RunFacts) -> dict[str, Any]:
    """Entries of a run over a dataset_config, which may hold several datasets."""
    tags: dict[str, Any] = {}
    for entry in facts.datasets:
        for folder, counts in (entry.get("tag_frequency") or {}).items():
            # A folder that several datasets use is counted once.
            tags.setdefault(folder, counts)
    subsets = [subset for entry in facts.datasets for subset in entry.get("subsets", ())]
    return {
        "ss_datasets": json.dumps([dict(entry) for entry in facts.datasets]),
        "ss_tag_frequency": json.dumps(tags),
        "ss_dataset_dirs": json.dumps(_folders(subset for subset in subsets if not subset.get("is_reg"))),
    }


def _folders(subsets: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """{folder name: repeats and pictures}; a name that comes again gets ` (2)`, ` (3)` behind it."""
    found: dict[str, dict[str, int]] = {}
    for subset in subsets:
        name = base = os.path.basename(str(subset.get("image_dir") or subset.get("metadata_file") or ""))
        number = 2
        while name in found:
            name, number = f"{base} ({number})", number + 1
        found[name] = {"n_repeats": subset.get("num_repeats", 1), "img_count": subset.get("img_count", 0)}
    return found


def _model_entries(what: str, source: str | None) -> dict[str, Any]:
    """Name and hashes of the base model (`sd_model`) or VAE (`vae`): of a path its last part, of a hub id all."""
    name = f"ss_{what}_name"
    if source is None or not Path(source).exists():
        return {name: source}
    path = Path(source)
    return {
        name: path.name or path.resolve().name,
        f"ss_{what}_hash": model_hash(path),
        f"ss_new_{what}_hash": sha256_of_file(path),
    }


def _pair(text: str | None) -> tuple[float, ...] | None:
    """`2.0,4.0` as a pair of numbers."""
    return None if not text else tuple(float(part) for part in text.split(","))
