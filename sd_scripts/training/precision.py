"""Which number formats a run uses, decided once from the options and the device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.training.notice import Notice

_COMPUTE: dict[str, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SAVE: dict[str | None, torch.dtype | None] = {
    None: None,
    "float": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class Precision:
    """Number formats of a run.

    mixed_precision: what accelerate is to be told ("no", "fp16" or "bf16"), which decides autocast and loss scaling;
    weights: the frozen model and the latents; trained: the trained weights; unet_storage, text_encoder_storage: how
    frozen weights lie in memory (fp8 where asked, else as `weights`); save: the saved weights, None for as trained;
    scales_loss: an fp16 loss scaler is in use.
    """

    mixed_precision: str
    weights: torch.dtype
    trained: torch.dtype
    unet_storage: torch.dtype
    text_encoder_storage: torch.dtype
    save: torch.dtype | None
    scales_loss: bool
    notices: list[Notice] = field(default_factory=list)

    def vae(self, no_half_vae: bool) -> torch.dtype:
        """The VAE's format: 32 bits with --no_half_vae, else as the other frozen weights."""
        return torch.float32 if no_half_vae else self.weights


def resolve(training: TrainingOptions, saving: SavingOptions, device: torch.device | str) -> Precision:
    """Decide the formats.

    fp16 on a CPU becomes bf16 with a notice: accelerate neither casts nor scales there, so the run would stop with an
    error about mixed types, or overflow; bf16 takes as little memory and needs no scaling.

    Raises UserError for combinations that cannot work (full_fp16 without fp16, fp8 without half precision).
    """
    asked = training.mixed_precision or "no"
    if asked not in _COMPUTE:
        raise UserError(f"mixed_precision is '{asked}'; it must be no, fp16 or bf16.", "mixed_precision")
    _check(training, asked)
    notices = []
    used = asked
    if asked == "fp16" and torch.device(device).type == "cpu":
        used = "bf16"
        notices.append(
            Notice(
                "fp16_on_cpu",
                "fp16 works on GPUs only; on this CPU bf16 is used instead.",
                "Choose mixed_precision bf16, or no for full exactness.",
                "mixed_precision",
            )
        )
    weights = _COMPUTE[used]
    small = torch.float8_e4m3fn
    return Precision(
        mixed_precision=used,
        weights=weights,
        trained=weights if training.full_fp16 or training.full_bf16 else torch.float32,
        unet_storage=small if training.fp8_base or training.fp8_base_unet else weights,
        text_encoder_storage=small if training.fp8_base and not training.fp8_base_unet else weights,
        save=_SAVE[saving.save_precision],
        scales_loss=used == "fp16",
        notices=notices,
    )


def _check(training: TrainingOptions, asked: str) -> None:
    if training.full_fp16 and training.full_bf16:
        raise UserError("full_fp16 and full_bf16 are both on; choose one.", "full_fp16")
    for key, given, needed in (("full_fp16", training.full_fp16, "fp16"), ("full_bf16", training.full_bf16, "bf16")):
        if given and asked != needed:
            raise UserError(f"{key} needs mixed_precision {needed}, not {asked}.", key)
    if asked == "no" and (training.fp8_base or training.fp8_base_unet):
        key = "fp8_base" if training.fp8_base else "fp8_base_unet"
        raise UserError(f"{key} needs mixed_precision fp16 or bf16.", key)


def allow_fp16_gradients(scaler: Any) -> None:
    """Let a loss scaler unscale gradients that are themselves fp16 (--full_fp16).

    torch refuses this, because such gradients overflow sooner; the person asked for it. Only this scaler is changed.

    Raises UserError when this torch has no such place to change.
    """
    original: Callable[..., Any] | None = getattr(scaler, "_unscale_grads_", None)
    if original is None:
        raise UserError("full_fp16 does not work with this version of torch.", "full_fp16", "Use full_bf16.")
    kept = original

    def unscale(optimizer: Any, inv_scale: Any, found_inf: Any, allow_fp16: bool) -> Any:
        return kept(optimizer, inv_scale, found_inf, True)

    scaler._unscale_grads_ = unscale
