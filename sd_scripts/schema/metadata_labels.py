"""What the notes in .safetensors files are called for people, and which of them belong together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .tabs import tab_fields


def words(text: str) -> str:
    """Mark a text of the page; it is translated where it is shown."""
    return text


# In the order in which they are shown. Notes of the form ss_<option> that are not here have the option's label.
LABELS = {
    "modelspec.title": words("Title"),
    "modelspec.author": words("Author"),
    "modelspec.description": words("Description"),
    "modelspec.usage_hint": words("How to use it"),
    "modelspec.trigger_phrase": words("Trigger phrase"),
    "modelspec.tags": words("Tags"),
    "modelspec.license": words("Licence"),
    "modelspec.date": words("Date"),
    "modelspec.architecture": words("Architecture"),
    "modelspec.implementation": words("Implementation"),
    "modelspec.prediction_type": words("Prediction type"),
    "modelspec.resolution": words("Resolution"),
    "modelspec.timestep_range": words("Range of timesteps"),
    "modelspec.encoder_layer": words("Text encoder layer"),
    "modelspec.merged_from": words("Merged from"),
    "modelspec.sai_model_spec": words("Version of these notes"),
    "ss_output_name": words("Model name"),
    "ss_training_comment": words("Comment"),
    "ss_base_model_version": words("Kind of base model"),
    "ss_sd_model_name": words("Base model"),
    "ss_vae_name": words("VAE"),
    "ss_network_module": words("Network"),
    "ss_network_args": words("Network arguments"),
    "ss_optimizer": words("Optimizer"),
    "ss_training_started_at": words("Training began"),
    "ss_training_finished_at": words("Training ended"),
    "ss_steps": words("Steps done"),
    "ss_epoch": words("Epochs done"),
    "ss_num_epochs": words("Epochs planned"),
    "ss_total_batch_size": words("Batch size in all"),
    "ss_batch_size_per_device": words("Batch size"),
    "ss_num_train_images": words("Training images, repeats counted"),
    "ss_num_reg_images": words("Regularisation images, repeats counted"),
    "ss_num_validation_images": words("Validation images"),
    "ss_num_batches_per_epoch": words("Batches an epoch"),
    "ss_v2": words("Stable Diffusion 2"),
    "ss_debiased_estimation": words("Debiased estimation loss"),
    "ss_session_id": words("Number of the session"),
    "ss_sd_scripts_commit_hash": words("Version of the trainer"),
    "sshs_model_hash": words("Fingerprint of the weights"),
    "sshs_legacy_hash": words("Short fingerprint"),
    "ss_sd_model_hash": words("Short fingerprint of the base model"),
    "ss_new_sd_model_hash": words("Fingerprint of the base model"),
    "ss_vae_hash": words("Short fingerprint of the VAE"),
    "ss_new_vae_hash": words("Fingerprint of the VAE"),
    "modelspec.hash_sha256": words("Fingerprint by the specification"),
}
_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_DATASET = frozenset(
    f"ss_{name}"
    for name in (
        "batch_size_per_device", "total_batch_size", "resolution", "color_aug", "flip_aug", "random_crop",
        "shuffle_caption", "enable_bucket", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso", "keep_tokens",
        "num_train_images", "num_reg_images", "num_validation_images", "num_batches_per_epoch", "face_crop_aug_range",
        "prior_loss_weight", "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate",
        "dataset_dirs", "reg_dataset_dirs", "tag_frequency", "bucket_info", "datasets", "resize_interpolation",
        "validation_split", "validation_seed", "cache_latents",
    )
)  # fmt: skip


def _is_hash(key: str) -> bool:
    return key in _HASHES or (key.startswith("ss_") and key.endswith("_hash") and "commit" not in key)


# Every note belongs to one group at most.
GROUPS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (words("About the file"), lambda key: key.startswith("modelspec.") and not _is_hash(key)),
    (
        words("Training settings"),
        lambda key: key.startswith("ss_") and key not in _DATASET and not _is_hash(key),
    ),
    (words("Dataset"), lambda key: key in _DATASET),
    (words("Fingerprints"), _is_hash),
)


@cache
def _options() -> dict[str, str]:
    return {key: option.label for key, option in tab_fields("lora").items() if option.label}


def label_of(key: str) -> str:
    """The name of a note for people; the note's own name where there is none."""
    if key in LABELS:
        return LABELS[key]
    return _options().get(key.removeprefix("ss_"), key) if key.startswith("ss_") else key
