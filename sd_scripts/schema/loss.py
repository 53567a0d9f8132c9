"""What the training compares, and how noise is added."""

from .option import All, Given, In, Is, option, section

_ORIGINAL = Is("noise_offset_type", "Original")
_MULTIRES = Is("noise_offset_type", "Multires")


@section("Noise and loss")
class LossOptions:
    """Noise, the measure of the error, and the weight of each step of denoising."""

    noise_offset: float | None = option(
        None,
        "Shift the noise of each picture as a whole, so that very dark and very bright pictures are learned. 0.05 to "
        "0.1 is usual.",
        label="Noise offset",
        minimum=0,
        maximum=1,
        step=0.01,
        off=0,
        when=_ORIGINAL,
    )
    noise_offset_random_strength: bool = option(
        False,
        "Draw the strength of the noise offset between 0 and the given value each time.",
        label="Noise offset of random strength",
        when=_ORIGINAL,
    )
    adaptive_noise_scale: float | None = option(
        None,
        "Add this times the mean of the picture's latent to the noise offset, so that brighter pictures get more. "
        "Needs a noise offset.",
        label="Adaptive noise scale",
        minimum=-1,
        maximum=1,
        step=0.001,
        off=0,
        when=All(_ORIGINAL, Given("noise_offset")),
    )
    multires_noise_iterations: int | None = option(
        None,
        "Layers of coarser noise added to the noise (pyramid noise). 6 to 10 is usual; another way to learn dark and "
        "bright pictures.",
        label="Layers of coarse noise",
        minimum=0,
        maximum=64,
        step=1,
        off=0,
        when=_MULTIRES,
    )
    multires_noise_discount: float = option(
        0.3,
        "How much each coarser layer counts compared with the one before. 0.1 to 0.3 for LoRA, up to 0.8 for large "
        "datasets.",
        label="Weight of coarser layers",
        minimum=0,
        maximum=1,
        step=0.01,
        when=_MULTIRES,
    )
    ip_noise_gamma: float | None = option(
        None,
        "Disturb the noise that the model sees, but not the one it shall find (input perturbation). 0.1 is usual.",
        label="Input perturbation",
        minimum=0,
        step=0.01,
        off=0,
    )
    ip_noise_gamma_random_strength: bool = option(
        False,
        "Draw the strength of the input perturbation between 0 and the given value each time.",
        label="Input perturbation of random strength",
        when=Given("ip_noise_gamma"),
    )
    zero_terminal_snr: bool = option(
        False,
        "Change the noise schedule so that its last step is pure noise. Lets a velocity-prediction model make really "
        "dark and bright pictures.",
        label="Zero terminal SNR",
    )
    min_timestep: int | None = option(
        None,
        "Lowest noise step to train, 0 to 999. Raise it to learn composition rather than fine detail.",
        label="Lowest noise step",
        minimum=0,
        maximum=999,
        step=1,
        off=0,
    )
    max_timestep: int | None = option(
        None,
        "Noise steps below this are trained, up to 1000. Lower it to learn detail rather than composition.",
        label="Highest noise step",
        minimum=1,
        maximum=1000,
        step=1,
        off=1000,
    )
    min_snr_gamma: float | None = option(
        None,
        "Limit the weight of easy noise steps, so that learning is steadier. 5 is usual, lower is stronger.",
        label="Min-SNR gamma",
        minimum=0,
        step=1,
        off=0,
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False,
        "Weight the loss of a velocity-prediction model as if it predicted noise. Needs velocity prediction.",
        label="Velocity loss weighted like noise loss",
        when=Is("v_parameterization", True),
    )
    v_pred_like_loss: float | None = option(
        None,
        "Add this much of a velocity-like weight to the loss of a noise-prediction model. Not with velocity "
        "prediction.",
        label="Velocity-like weight",
        minimum=0,
        step=0.01,
        off=0,
        when=Is("v_parameterization", False),
    )
    debiased_estimation_loss: bool = option(
        False,
        "Weight noise steps by the inverse square root of their signal-to-noise ratio. An alternative to min-SNR.",
        label="Debiased estimation",
    )
    loss_type: str = option(
        "l2",
        "How the error is measured: l2 squares it, l1 does not, huber and smooth_l1 square only small errors and so "
        "bear odd pictures better.",
        label="Loss",
        choices=("l1", "l2", "huber", "smooth_l1"),
    )
    huber_schedule: str = option(
        "snr",
        "How the point where the loss turns linear changes with the noise: fixed, falling exponentially, or by "
        "signal-to-noise ratio.",
        label="Huber schedule",
        choices=("constant", "exponential", "snr"),
        when=In("loss_type", "huber", "smooth_l1"),
    )
    huber_c: float = option(
        0.1,
        "Error at which the loss turns from square to linear. Smaller bears more outliers.",
        label="Huber threshold",
        minimum=0.0001,
        step=0.01,
        when=In("loss_type", "huber", "smooth_l1"),
    )
    huber_scale: float = option(
        1.0,
        "Factor on the threshold after the schedule.",
        label="Huber scale",
        minimum=0,
        step=0.01,
        when=In("loss_type", "huber", "smooth_l1"),
    )
    masked_loss: bool = option(
        False,
        "Learn only the parts that a mask shows bright. Masks come from a folder of masks or from transparency.",
        label="Masked loss",
        methods=("network", "full", "embedding", "xti"),
    )
