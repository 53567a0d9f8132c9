"""From a prediction to one loss per sample, and the running average that is shown to people."""

from typing import Any

import torch
from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions
from sd_scripts.training.noise import NoiseSample, Schedule

# An SNR beyond this changes the debiasing weight by less than it disturbs training.
_SNR_CEILING = 1000.0


def elementwise(prediction: Tensor, target: Tensor, loss_type: str, huber_c: Tensor | None) -> Tensor:
    """The unreduced distance, same shape as `prediction` [B,C,H,W].

    l2 is the square, l1 the absolute value. huber is 2c(sqrt(d^2 + c^2) - c): c^2-free near 0, linear far away;
    smooth_l1 is the same divided by c. `huber_c` [B] is c per sample, needed by these two.
    """
    difference = prediction - target
    if loss_type == "l2":
        return difference**2
    if loss_type == "l1":
        return difference.abs()
    if loss_type not in ("huber", "smooth_l1"):
        raise UserError(f"loss_type is '{loss_type}'; it must be l1, l2, huber or smooth_l1.", "loss_type")
    if huber_c is None:
        raise ValueError(f"{loss_type} needs its thresholds")
    turn = huber_c.to(difference).reshape(-1, *([1] * (difference.dim() - 1)))
    bowl = 2 * (torch.sqrt(difference**2 + turn**2) - turn)
    return turn * bowl if loss_type == "huber" else bowl


def apply_masks(loss: Tensor, masks: Tensor | None) -> Tensor:
    """Weight the unreduced loss [B,C,h,w] by masks [B,H,W] in 0..1, shrunk to it by averaging areas.

    The mean is later taken over all pixels, masked ones too, so a small mask makes a small loss (as in sd-scripts).
    """
    if masks is None:
        return loss
    shrunk = torch.nn.functional.interpolate(masks[:, None].to(loss), size=loss.shape[2:], mode="area")
    return loss * shrunk


def masks_of_images(images: Tensor) -> Tensor:
    """Masks [B,H,W] in 0..1 from conditioning pictures [B,3,H,W] in -1..1: their red channel."""
    return (images[:, 0] + 1) / 2


def min_snr_weight(snr: Tensor, gamma: float, v_prediction: bool) -> Tensor:
    """Min-SNR weights [B] (arXiv 2303.09556): min(snr, gamma) / snr, for v-prediction / (snr + 1)."""
    clipped = torch.minimum(snr, torch.full_like(snr, gamma))
    return clipped / (snr + 1) if v_prediction else clipped / snr


def scale_v_weight(snr: Tensor) -> Tensor:
    """Weights [B] that make a v-prediction loss count as an epsilon loss would: snr / (snr + 1), snr at most 1000."""
    limited = snr.clamp(max=_SNR_CEILING)
    return limited / (limited + 1)


def v_like_weight(snr: Tensor, factor: float) -> Tensor:
    """Weights [B] that add `factor` times the v-prediction loss to an epsilon loss."""
    return 1 + factor / scale_v_weight(snr)


def debiased_weight(snr: Tensor, v_prediction: bool) -> Tensor:
    """Debiased estimation weights [B] (arXiv 2310.08442): 1 / sqrt(snr), for v-prediction 1 / (snr + 1)."""
    limited = snr.clamp(max=_SNR_CEILING)
    return 1 / (limited + 1) if v_prediction else 1 / torch.sqrt(limited)


def weigh(loss: Tensor, timesteps: Tensor, schedule: Schedule, options: LossOptions, prediction_type: str) -> Tensor:
    """Apply the SNR weights that the options ask for to per-sample losses [B], in the order of sd-scripts."""
    is_v = prediction_type == "v_prediction"
    snr = schedule.all_snr.to(loss.device)[timesteps.to(loss.device)]
    if options.min_snr_gamma:
        loss = loss * min_snr_weight(snr, options.min_snr_gamma, is_v)
    if options.scale_v_pred_loss_like_noise_pred:
        loss = loss * scale_v_weight(snr)
    if options.v_pred_like_loss:
        loss = loss * v_like_weight(snr, options.v_pred_like_loss)
    if options.debiased_estimation_loss:
        loss = loss * debiased_weight(snr, is_v)
    return loss


def per_sample(
    prediction: Tensor,
    sample: NoiseSample,
    options: LossOptions,
    schedule: Schedule,
    prediction_type: str,
    loss_weights: Tensor | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """One loss per sample, [B], float32; the trainer takes their mean.

    Args:
        prediction: what the model said, [B,C,H,W] in any float type.
        sample: what `noise.prepare` made for this step.
        options: the loss section.
        schedule: the noise schedule.
        prediction_type: "epsilon" or "v_prediction".
        loss_weights: [B], the prior loss weight for regularisation pictures, else 1.
        masks: [B,H,W] in 0..1 of the picture's size (masked loss, alpha masks), or None.
    """
    loss = elementwise(prediction.float(), sample.target.float(), options.loss_type, sample.huber_c)
    loss = apply_masks(loss, masks).mean(dim=tuple(range(1, loss.dim())))
    if loss_weights is not None:
        loss = loss * loss_weights.to(loss)
    return weigh(loss, sample.timesteps, schedule, options, prediction_type)


class LossRecorder:
    """The average over the last epoch's worth of losses: each step replaces its own value of the epoch before."""

    def __init__(self) -> None:
        self._losses: dict[int, float] = {}
        self._total = 0.0

    def add(self, epoch: int, step: int, loss: float) -> None:
        """Note the loss of `step` (0-based within the epoch). `epoch` is kept for the caller's log line only."""
        self._total += loss - self._losses.get(step, 0.0)
        self._losses[step] = loss

    @property
    def average(self) -> float:
        """Mean of the remembered losses; 0 before the first."""
        return self._total / len(self._losses) if self._losses else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the same average; JSON keeps these floats exactly."""
        return {"steps": list(self._losses), "losses": list(self._losses.values()), "total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._losses = {int(step): float(loss) for step, loss in zip(state["steps"], state["losses"])}
        self._total = float(state["total"])
