"""Rules over learning rates, optimizer, precision, noise and loss."""

from contextlib import suppress

from .errors import UserError
from .finding import Finding, Rule, Values, error, rule, warning
from .values import parse_block_rates, trains_text_encoder

_SELF_TUNING = ("prodigy", "dadapt")
_USUAL = {
    "network": "About 1e-4 is usual for a LoRA.",
    "full": "About 1e-6 to 1e-5 is usual for a whole model.",
    "embedding": "About 5e-3 is usual for an embedding.",
    "xti": "About 5e-3 is usual for an embedding.",
    "controlnet": "About 1e-5 is usual for a ControlNet.",
    "lllite": "About 2e-4 is usual for ControlNet-LLLite.",
}


def _optimizer(values: Values) -> str:
    return str(values["optimizer_type"] or "AdamW").lower()


def _tunes_itself(values: Values) -> bool:
    return any(name in _optimizer(values) for name in _SELF_TUNING)


def _rates(values: Values) -> dict[str, float]:
    """Highest learning rate of each part that is trained, as the trainer will use it."""
    if values["method"] != "network":
        return _rates_of_full(values) if values["method"] == "full" else {"learning_rate": values["learning_rate"]}
    rates = {}
    if not values["network_train_text_encoder_only"]:
        rates["unet_lr"] = values["learning_rate"] if values["unet_lr"] is None else values["unet_lr"]
    if not values["network_train_unet_only"]:
        rates["text_encoder_lr"] = max(values["text_encoder_lr"] or [values["learning_rate"]])
    return rates


def _rates_of_full(values: Values) -> dict[str, float]:
    general = values["learning_rate"]
    rates = {"learning_rate": general}
    with suppress(UserError):  # what cannot be read has a rule of its own
        blocks = parse_block_rates(values.get("block_lr") or "")
        if blocks:
            rates = {"block_lr": max(blocks)}
    if trains_text_encoder(values):
        own = [key for key in ("learning_rate_te", "learning_rate_te1", "learning_rate_te2") if key in values]
        rates |= {key: general if values[key] is None else values[key] for key in own}
    return rates


@rule("network_train_unet_only")
def something_to_train(values: Values) -> Finding | None:
    """Not both parts are excluded."""
    if values["network_train_unet_only"] and values["network_train_text_encoder_only"]:
        return error(
            "network_train_unet_only",
            "Only the U-Net and only the text encoder: nothing is left to train.",
            "Switch off one or both.",
        )
    return None


@rule()
def some_rate(values: Values) -> Finding | None:
    """At least one part that is trained has a learning rate."""
    rates = _rates(values)
    if rates and not any(rates.values()):
        return error(
            "learning_rate", "All learning rates are 0, so nothing would be learned.", _USUAL[values["method"]]
        )
    return None


@rule("network_train_unet_only")
def rate_without_part(values: Values) -> Finding | None:
    """A rate for a part that is not trained has no effect."""
    if values["network_train_unet_only"] and any(values["text_encoder_lr"] or []):
        return warning(
            "text_encoder_lr", "The learning rate of the text encoder has no effect: only the U-Net is trained."
        )
    if values["network_train_text_encoder_only"] and values["unet_lr"]:
        return warning("unet_lr", "The learning rate of the U-Net has no effect: only the text encoder is trained.")
    return None


@rule()
def old_switches(values: Values) -> Finding | None:
    """The old switches name one optimizer, and not another than optimizer_type."""
    given = [key for key in ("use_8bit_adam", "use_lion_optimizer") if values[key]]
    if len(given) == 2:
        return error(
            "use_lion_optimizer",
            "use_8bit_adam and use_lion_optimizer name two optimizers.",
            "Give optimizer_type instead.",
        )
    if given and values["optimizer_type"]:
        return error(
            given[0],
            f"{given[0]} and optimizer_type={values['optimizer_type']} name two optimizers.",
            f"Leave {given[0]} out.",
        )
    return None


@rule()
def self_tuning_rate(values: Values) -> Finding | None:
    """Prodigy and DAdapt find the rate themselves and want a factor near 1."""
    highest = max(_rates(values).values(), default=0)
    if _tunes_itself(values) and 0 < highest < 0.1:
        name = values["optimizer_type"]
        return warning(
            "learning_rate",
            f"{name} finds the learning rate itself; a rate of {highest:g} slows it down to nothing.",
            "Set the learning rates to 1.",
        )
    return None


@rule()
def self_tuning_parts(values: Values) -> Finding | None:
    """DAdapt and Prodigy know one rate."""
    rates = _rates(values)
    if _tunes_itself(values) and len({rate for rate in rates.values() if rate}) > 1:
        return warning(
            next(iter(rates)),
            f"{values['optimizer_type']} works with one learning rate; different ones make it unreliable.",
            "Set all to 1.",
        )
    return None


@rule()
def wild_rate(values: Values) -> Finding | None:
    """A rate that destroys the model."""
    limit = 0.01 if not _optimizer(values).startswith("sgd") else 10
    for key, rate in _rates(values).items():
        if not _tunes_itself(values) and rate > limit:
            shown = key if values[key] else "learning_rate"
            return warning(
                shown,
                f"A learning rate of {rate:g} is very high for {values['optimizer_type'] or 'AdamW'}.",
                _USUAL[values["method"]],
            )
    return None


@rule()
def fused_backward(values: Values) -> Finding | None:
    """The fused backward pass works with Adafactor and single batches only."""
    if not values["fused_backward_pass"]:
        return None
    if _optimizer(values) != "adafactor":
        return error(
            "fused_backward_pass",
            f"The fused backward pass works with Adafactor, not {values['optimizer_type'] or 'AdamW'}.",
            "Choose Adafactor, or switch it off.",
        )
    if values["gradient_accumulation_steps"] > 1:
        return error(
            "gradient_accumulation_steps",
            "The fused backward pass needs one batch per step.",
            "Set gradient_accumulation_steps to 1.",
        )
    return None


@rule()
def warmup_of_constant(values: Values) -> Finding | None:
    """Some schedules know no warm-up."""
    if not values["lr_warmup_steps"]:
        return None
    if values["lr_scheduler_type"]:
        return error(
            "lr_warmup_steps",
            f"A warm-up cannot go with the schedule class {values['lr_scheduler_type']}.",
            "Set the warm-up to 0.",
        )
    if values["lr_scheduler"].split(":")[0] in ("constant", "adafactor"):
        return error(
            "lr_warmup_steps",
            f"The schedule {values['lr_scheduler']} has no warm-up.",
            "Choose constant_with_warmup, or set the warm-up to 0.",
        )
    if values["lr_scheduler"] == "piecewise_constant":
        return warning(
            "lr_warmup_steps", "The schedule piecewise_constant ignores the warm-up.", "Put it into step_rules."
        )
    return None


@rule()
def long_warmup(values: Values) -> Finding | None:
    """A warm-up that never ends."""
    steps = values["lr_warmup_steps"]
    if (
        values["max_train_epochs"] is None
        and isinstance(steps, int)
        and steps >= values["max_train_steps"] > 0
        and steps > 0
    ):
        return warning(
            "lr_warmup_steps",
            f"The warm-up of {steps} steps lasts the whole training.",
            "A tenth of the steps is usual.",
        )
    return None


@rule()
def adafactor_schedule(values: Values) -> Finding | None:
    """The schedule of Adafactor needs Adafactor."""
    if values["lr_scheduler"].split(":")[0] == "adafactor" and _optimizer(values) != "adafactor":
        return error(
            "lr_scheduler",
            f"The schedule adafactor works with the optimizer Adafactor, not {values['optimizer_type'] or 'AdamW'}.",
            "Choose cosine or constant.",
        )
    return None


@rule()
def full_fp16(values: Values) -> Finding | None:
    """Everything in fp16 needs precision fp16."""
    if values["full_fp16"] and values["mixed_precision"] != "fp16":
        return error(
            "full_fp16",
            f"Everything in fp16 needs the precision fp16, not {values['mixed_precision']}.",
            "Set mixed_precision to fp16.",
        )
    return None


@rule()
def full_bf16(values: Values) -> Finding | None:
    """Everything in bf16 needs precision bf16."""
    if values["full_bf16"] and values["mixed_precision"] != "bf16":
        return error(
            "full_bf16",
            f"Everything in bf16 needs the precision bf16, not {values['mixed_precision']}.",
            "Set mixed_precision to bf16.",
        )
    return None


@rule()
def fp8_needs_precision(values: Values) -> Finding | None:
    """Weights in 8 bits are computed with in 16."""
    for key in ("fp8_base", "fp8_base_unet"):
        if values.get(key) and values["mixed_precision"] == "no":
            return error(
                key, "A base model in 8 bits needs the precision fp16 or bf16.", "Set mixed_precision to bf16 or fp16."
            )
    return None


@rule()
def adaptive_noise(values: Values) -> Finding | None:
    """The adaptive scale changes a noise offset that must exist."""
    if values["adaptive_noise_scale"] and not values["noise_offset"]:
        return error(
            "adaptive_noise_scale",
            "The adaptive noise scale needs a noise offset.",
            "Set noise_offset, for instance to 0.05.",
        )
    return None


@rule()
def two_noises(values: Values) -> Finding | None:
    """Offset and layers of noise together are too much of a good thing."""
    if values["noise_offset"] and values["multires_noise_iterations"]:
        return warning(
            "multires_noise_iterations",
            "Noise offset and layers of coarse noise do the same; together they are strong.",
            "Use one of both.",
        )
    return None


@rule()
def scaled_velocity_loss(values: Values) -> Finding | None:
    """Scaling the velocity loss needs velocity prediction."""
    key = "scale_v_pred_loss_like_noise_pred"
    if values[key] and not values["v_parameterization"]:
        return error(
            key,
            "Weighting the velocity loss needs a model with velocity prediction.",
            "Switch it off, or v_parameterization on.",
        )
    return None


@rule()
def velocity_like_loss(values: Values) -> Finding | None:
    """A velocity-like weight is for noise prediction."""
    if values["v_pred_like_loss"] and values["v_parameterization"]:
        return error(
            "v_pred_like_loss",
            "A velocity-like weight is for models that predict noise, not velocity.",
            "Leave it empty.",
        )
    return None


@rule()
def zero_snr(values: Values) -> Finding | None:
    """Pure noise says nothing about the noise to a noise-predicting model."""
    if values["zero_terminal_snr"] and not values["v_parameterization"]:
        return warning(
            "zero_terminal_snr",
            "Zero terminal SNR is meant for velocity prediction.",
            "Switch it off for a noise-predicting model.",
        )
    return None


@rule()
def timestep_range(values: Values) -> Finding | None:
    """The lowest noise step is below the highest."""
    low, high = values["min_timestep"] or 0, 1000 if values["max_timestep"] is None else values["max_timestep"]
    if low >= high:
        return error("min_timestep", f"The lowest noise step ({low}) is not below the highest ({high}).", "Swap them.")
    return None


@rule()
def two_weightings(values: Values) -> Finding | None:
    """Two weightings of noise steps at once."""
    if values["min_snr_gamma"] and values["debiased_estimation_loss"]:
        return warning(
            "debiased_estimation_loss",
            "Min-SNR and debiased estimation both weight the noise steps.",
            "Use one of both.",
        )
    return None


RULES: tuple[Rule, ...] = (
    something_to_train, some_rate, rate_without_part, old_switches, self_tuning_rate, self_tuning_parts, wild_rate,
    fused_backward, warmup_of_constant, long_warmup, adafactor_schedule, full_fp16, full_bf16, fp8_needs_precision,
    adaptive_noise, two_noises, scaled_velocity_loss, velocity_like_loss, zero_snr, timestep_range, two_weightings,
)  # fmt: skip
