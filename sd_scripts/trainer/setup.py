"""Putting a run together, cheapest checks first: options, paths, pictures, then the model, the cache, the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from sd_scripts.data.config import build_blueprint
from sd_scripts.data.dataset import DatasetGroup, build
from sd_scripts.data.spec import bucket_step_multiple
from sd_scripts.families.base import Family, Model
from sd_scripts.families.identity import text_identity, vae_identity
from sd_scripts.methods.base import Method
from sd_scripts.models.folder import is_hub_id
from sd_scripts.sampling.prompts import parse_prompts
from sd_scripts.sampling.weights import parse_weights
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.training.plan import RunPlan, make_plan
from sd_scripts.training.precision import Precision


@dataclass
class Data:
    """The pictures of a run, scanned but not loaded."""

    train: DatasetGroup
    validation: DatasetGroup | None


def check_paths(config: TrainConfig, method: Method) -> None:
    """Look at every file and folder the run will need, before anything is loaded.

    Raises UserError for the first one that is missing or cannot be written.
    """
    for key, path in (
        ("vae", None if is_hub_id(config.model.vae or "") else config.model.vae),
        ("sample_prompts", config.sampling.sample_prompts),
        *method.required_files(),
    ):
        if path and not Path(path).exists():
            raise UserError(f"{key}: '{path}' does not exist.", key, "Check the path.")
    if config.sampling.sample_prompts:
        parse_prompts(Path(config.sampling.sample_prompts))
    folder = Path(config.saving.output_dir or ".")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir '{folder}' cannot be made: {error.strerror}.", "output_dir") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output_dir '{folder}' cannot be written to.", "output_dir", "Choose another folder.")


def scan(config: TrainConfig, method: Method, seed: int) -> Data:
    """Find the pictures. Raises UserError where they cannot be trained on."""
    blueprint = build_blueprint(
        config.dataset,
        config.captions,
        config.validation,
        # Pictures in conditioning_data_dir weigh the loss only where masked_loss asks for it; alpha masks always do.
        control_images=method.needs_control_images or not config.loss.masked_loss,
        requires_control=method.needs_control_images,
        allow_plugins=config.run.allow_plugins,
        command=config.command,
        bucket_step_multiple=bucket_step_multiple(config.command),
        cache_text=config.text_cache.cache_text_encoder_outputs,
    )
    data = Data(*build(blueprint, seed))
    data.train.warnings += method.check_captions(training_captions(data.train))
    for group in (data.train, data.validation):
        if group is not None:
            group.replacements = method.caption_replacements()
    if config.model.weighted_captions:
        check_weights(data.train)
    return data


def training_captions(group: DatasetGroup) -> Iterator[str]:
    """The caption of every picture with its subset's prefix and suffix; regularisation pictures are left out."""
    for dataset in group.datasets:
        for record in dataset.records:
            subset = dataset.subset_of(record)
            if not subset.is_reg:
                around = (subset.captions.caption_prefix, record.caption, subset.captions.caption_suffix)
                yield " ".join(part for part in around if part)


def check_weights(group: DatasetGroup) -> None:
    """Read the weights in every caption now, not when its batch comes. Raises DataError naming the picture."""
    for dataset in group.datasets:
        for record in dataset.records:
            try:
                parse_weights(record.caption)
            except UserError as error:
                raise DataError(
                    f"The caption of {record.path} has a weight that cannot be read: {error.message}",
                    "weighted_captions",
                    "Write (word:1.3), or a backslash before a bracket that is meant as one.",
                ) from error


def plan_of(config: TrainConfig, data: Data, processes: int) -> RunPlan:
    """All lengths of the run."""
    return make_plan(
        config.training,
        config.optimizer,
        config.saving,
        batches=data.train.batches_per_epoch,
        batch_size=data.train.batch_size,
        processes=processes,
    )


def load_model(
    config: TrainConfig,
    family: Family,
    method: Method,
    precision: Precision,
    device: torch.device,
    reporter: Reporter,
) -> Model:
    """Load the base model: straight onto the device with --lowram, else into main memory first.

    A model that is trained itself is loaded in the precision of what is trained; its frozen parts are lowered later.
    """
    reporter.phase("load model")
    dtype = precision.trained if method.saves_whole_model else precision.weights
    model = family.load(config.model, dtype, device if config.training.lowram else "cpu")
    for note in model.extras.get("notes", ()):
        reporter.warn("model", str(note), key="pretrained_model_name_or_path")
    if model.prediction_type == "v_prediction" and config.loss.v_pred_like_loss:
        raise UserError(
            "v_pred_like_loss is for models that predict noise, but this one does v-prediction.",
            "v_pred_like_loss",
            "Leave it out.",
        )
    family.apply_memory_options(model, config.training)
    if method.saves_whole_model:
        model.extras["vae_as_read"] = model.vae.state_dict()  # for the file; the next line lowers the module alone
    torch.nn.Module.to(model.vae, dtype=precision.vae(config.model.no_half_vae))  # diffusers' own warns for nothing
    return model


def on_machine(accelerator: Accelerator) -> tuple[int, int]:
    """This process among those of its machine, and how many these are."""
    return accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def cache_latents(
    config: TrainConfig,
    family: Family,
    method: Method,
    model: Model,
    data: Data,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Encode the pictures once, where the options ask for it; the VAE leaves the device afterwards."""
    if not config.dataset.cache_latents:
        model.vae.to(accelerator.device)
        return
    model.vae.to(accelerator.device).eval()
    for group in (data.train, data.validation):
        if group is None:
            continue
        group.cache_latents(
            lambda pixels: family.encode_images(model, pixels),
            to_disk=config.dataset.cache_latents_to_disk,
            batch_size=config.dataset.vae_batch_size,
            device=accelerator.device,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            progress=lambda done, of: reporter.phase("cache latents", done, of),
            wait=accelerator.wait_for_everyone,
            on_machine=on_machine(accelerator),
            family=family.name,
            encoder_id=vae_identity(model),
        )
    if not config.sampling.sample_prompts and not method.saves_whole_model:
        # Nobody needs the VAE any more; without its weights a run on a CPU takes 0.3 GB less.
        torch.nn.Module.to(model.vae, "meta")
    elif not config.training.highvram:
        model.vae.to("cpu")
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
    accelerator.wait_for_everyone()


def cache_text_outputs(
    config: TrainConfig,
    family: Family,
    method: Method,
    model: Model,
    data: Data,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Encode the captions once, where the options ask for it; the text encoders leave the device afterwards.

    Raises UserError where captions change from use to use, or where the text encoders are trained.
    """
    if not config.text_cache.cache_text_encoder_outputs:
        return
    if not family.caches_text or method.trains_text_encoder:
        raise UserError(
            "cache_text_encoder_outputs needs text encoders that are not trained.",
            "cache_text_encoder_outputs",
            "Switch on network_train_unet_only, or leave the cache out.",
        )
    for encoder in model.text_encoders:
        encoder.to(accelerator.device).eval()

    def encode(captions: list[str]) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad(), accelerator.autocast():
            return family.text_outputs(model, captions, options=config.model)

    for group in (data.train, data.validation):
        if group is not None:
            group.cache_text_outputs(
                encode,
                to_disk=config.text_cache.cache_text_encoder_outputs_to_disk,
                batch_size=config.dataset.vae_batch_size,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
                progress=lambda done, of: reporter.phase("cache text", done, of),
                wait=accelerator.wait_for_everyone,
                on_machine=on_machine(accelerator),
                encoder_id=text_identity(model),
                max_token_length=config.model.max_token_length,
            )
    needed = bool(config.sampling.sample_prompts) or method.saves_whole_model
    for encoder in model.text_encoders:
        torch.nn.Module.to(encoder, "cpu" if needed else "meta")
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    accelerator.wait_for_everyone()


def attach(
    config: TrainConfig, family: Family, model: Model, method: Method, precision: Precision, device: torch.device
) -> None:
    """Move the model to the device and put what is trained into it."""
    model.unet.to(device)
    if not config.text_cache.cache_text_encoder_outputs:
        for encoder in model.text_encoders:
            encoder.to(device)
    checkpointing = config.training.gradient_checkpointing or config.training.cpu_offload_checkpointing
    if checkpointing:
        family.use_gradient_checkpointing(model, text=method.trains_text_encoder)
    method.attach(
        model,
        family,
        gradient_checkpointing=checkpointing,
        weight_dtype=precision.weights,
        network_dtype=precision.trained,
    )
    if config.training.torch_compile and config.training.dynamo_backend != "no":
        model.unet.compile(backend=compiler(config.training.dynamo_backend))


def compiler(name: str) -> str:
    """The back end of torch.compile, once it is known to exist here. Raises UserError where it does not."""
    if name not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(["eager", "aot_eager", *torch.compiler.list_backends()])
        raise UserError(
            f"dynamo_backend '{name}' is not there: this torch has {known}.",
            "dynamo_backend",
            "Choose inductor, or switch torch_compile off.",
        )
    return name
