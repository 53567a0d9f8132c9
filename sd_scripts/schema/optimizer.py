"""Learning rates, the optimizer, and how the rate changes during training."""

from .option import In, Is, option, section

OPTIMIZERS = (
    "AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion", "Lion8bit", "PagedLion8bit",
    "SGDNesterov", "SGDNesterov8bit", "Adafactor", "DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam",
    "DAdaptAdan", "DAdaptAdanIP", "DAdaptLion", "DAdaptSGD", "Prodigy", "AdamWScheduleFree", "RAdamScheduleFree",
    "SGDScheduleFree",
)  # fmt: skip

SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "adafactor",
    "piecewise_constant", "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay",
)  # fmt: skip

HAS_WARMUP = In(
    "lr_scheduler", *(name for name in SCHEDULERS if name not in ("constant", "adafactor", "piecewise_constant"))
)
"""The schedules that start with a warm-up."""


@section("Optimizer and learning rate")
class OptimizerOptions:
    """What changes the weights, and by how much."""

    learning_rate: float = option(
        2.0e-6,
        "How far each step moves the weights. About 1e-4 for a LoRA with AdamW; 1 for Prodigy and DAdapt, which find "
        "the rate themselves.",
        label="Learning rate",
        minimum=0,
        basic=True,
    )
    unet_lr: float | None = option(
        None,
        "Learning rate of the U-Net, if it should differ from the general one. 0 leaves the U-Net as it is.",
        label="Learning rate of the U-Net",
        minimum=0,
        methods=("network",),
    )
    text_encoder_lr: list[float] | None = option(
        None,
        "Learning rate of the text encoder (of each, if there are several), often half of the U-Net's. 0 leaves the "
        "text encoder as it is.",
        label="Learning rate of the text encoder",
        minimum=0,
        methods=("network",),
    )
    optimizer_type: str = option(
        "",
        "The method that turns gradients into changes; AdamW if empty. The 8-bit ones save memory, Prodigy and DAdapt "
        "choose the rate themselves. "
        "A class of torch.optim or a dotted path is possible.",
        label="Optimizer",
        choices=OPTIMIZERS,
        custom=True,
        aliases=("optimizer",),
        basic=True,
    )
    optimizer_args: list[str] | None = option(
        None,
        "Further settings of the optimizer as name=value, for instance weight_decay=0.01 betas=0.9,0.99.",
        label="Optimizer settings",
        kind="list",
    )
    max_grad_norm: float = option(
        1.0,
        "Gradients longer than this are shortened, so that one bad batch does no harm. 0 switches it off.",
        label="Longest gradient",
        minimum=0,
        step=0.1,
    )
    lr_scheduler: str = option(
        "constant",
        "How the learning rate changes during training: constant, falling (linear, cosine, polynomial), with "
        "restarts, and so on.",
        label="Schedule",
        choices=SCHEDULERS,
        custom=True,
    )
    lr_scheduler_type: str = option(
        "",
        "A schedule class by name (from torch.optim.lr_scheduler) or dotted path. Takes the place of the schedule "
        "above. For programmers.",
        label="Schedule class",
        choices=("CosineAnnealingLR",),
        custom=True,
    )
    lr_scheduler_args: list[str] | None = option(
        None,
        "Further settings of the schedule as name=value, for instance T_max=100 with CosineAnnealingLR.",
        label="Schedule settings",
        kind="list",
    )
    lr_warmup_steps: int | float = option(
        0,
        "Steps in which the rate grows from zero to full; below 1 (or as 10%) a share of all steps. Helps against a "
        "wild start.",
        label="Warm-up",
        minimum=0,
        unit="steps",
        when=HAS_WARMUP,
    )
    lr_decay_steps: int | float = option(
        0,
        "Steps in which the rate falls at the end; below 1 (or as 10%) a share of all steps.",
        label="Decay",
        minimum=0,
        unit="steps",
        when=Is("lr_scheduler", "warmup_stable_decay"),
    )
    lr_scheduler_num_cycles: int = option(
        1,
        "How often a cosine schedule with restarts starts over.",
        label="Restarts",
        minimum=1,
        step=1,
    )
    lr_scheduler_power: float = option(
        1,
        "Bend of the polynomial schedule: 1 is a straight line, more falls faster at first.",
        label="Power",
        minimum=0,
        step=0.1,
    )
    lr_scheduler_timescale: int | None = option(
        None,
        "How slowly the inverse square root schedule falls; the length of the warm-up if empty.",
        label="Time scale",
        minimum=1,
        off=0,
        unit="steps",
        when=Is("lr_scheduler", "inverse_sqrt"),
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        "Lowest rate at the end, as a share of the full rate.",
        label="Lowest rate",
        minimum=0,
        maximum=1,
        step=0.01,
        when=In("lr_scheduler", "cosine_with_min_lr", "warmup_stable_decay"),
    )
    fused_backward_pass: bool = option(
        False,
        "Change each weight as soon as its gradient is known and forget the gradient. Saves memory; only with "
        "Adafactor and one batch per step.",
        label="Fused backward pass",
    )
    use_8bit_adam: bool = option(
        False,
        "Older way to ask for the optimizer AdamW8bit. Kept for old scripts.",
        label="AdamW8bit (old switch)",
    )
    use_lion_optimizer: bool = option(
        False,
        "Older way to ask for the optimizer Lion. Kept for old scripts.",
        label="Lion (old switch)",
    )
