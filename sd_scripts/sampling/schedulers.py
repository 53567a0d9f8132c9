"""The sampler names of `--sample_sampler` and `--ss`, each as a scheduler of the diffusers library.

All of them walk Stable Diffusion's noise schedule: 1000 training steps, betas 0.00085 to 0.012 with linear roots.
"""

from __future__ import annotations

from typing import Any

from sd_scripts.schema.errors import UserError

TRAINING_STEPS = 1000
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# kohya's trainers clip the predicted picture to -1..1 wherever the scheduler can; so do samples here, to look alike.
_CLIPPED = {"clip_sample": True}
# dpmsolver without ++ divides by the last sigma, so it has to stop at the smallest training sigma instead of zero.
_DPM = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
_DPM_PLUS = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}

_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", _CLIPPED),
    "ddpm": ("DDPMScheduler", _CLIPPED),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", _CLIPPED),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", _DPM),
    "dpmsolver++": ("DPMSolverMultistepScheduler", _DPM_PLUS),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {**_DPM_PLUS, "lower_order_final": True}),
}
_ALIASES = {"k_lms": "lms", "k_euler": "euler", "k_euler_a": "euler_a", "k_dpm_2": "dpm_2", "k_dpm_2_a": "dpm_2_a"}

SAMPLERS = (*_TABLE, *_ALIASES)
FALLBACK = "ddim"


def known_sampler(name: str | None) -> bool:
    """Whether this name has a scheduler of its own (`make_scheduler` gives DDIM for all others)."""
    return name in SAMPLERS


def make_scheduler(name: str, prediction_type: str = "epsilon") -> Any:
    """The scheduler for a sampler name, with `prediction_type` "epsilon" or "v_prediction".

    A name that is not in `SAMPLERS` gives DDIM, as in kohya's trainers; ask `known_sampler` to warn about it.
    Raises UserError for a prediction type that these schedulers do not know, or for LMS without scipy.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(f"'{prediction_type}' is no prediction type; 'epsilon' and 'v_prediction' are")
    import diffusers

    class_name, settings = _TABLE[_ALIASES.get(name, name) if known_sampler(name) else FALLBACK]
    try:
        return getattr(diffusers, class_name)(
            num_train_timesteps=TRAINING_STEPS, prediction_type=prediction_type, **_BETAS, **settings
        )
    except ImportError as error:
        raise UserError(
            f"the sampler '{name}' needs a package that is not installed: {error}",
            key="sample_sampler",
            hint="pip install scipy, or take another sampler",
        ) from error
