"""Rules over SDXL: what its models do not take, and captions that are encoded only once."""

from .captions import CHANGING
from .finding import Finding, Rule, Values, error, rule, warning


@rule()
def other_family(values: Values) -> Finding | None:
    """The model is of the trainer's family."""
    if values["sdxl"] and values["family"] == "sd":
        return error(
            "sdxl",
            "The base model is SDXL, but this trainer is for Stable Diffusion 1 and 2.",
            "Choose a Stable Diffusion 1 or 2 model, or another kind of base model.",
        )
    return None


@rule()
def sdxl_and_v2(values: Values) -> Finding | None:
    """A model is one or the other."""
    if values["sdxl"] and values["v2"]:
        return error("v2", "The base model cannot be both SDXL and Stable Diffusion 2.", "Leave one of both off.")
    return None


@rule("weighted_captions")
def sdxl_weights_in_captions(values: Values) -> Finding | None:
    """Weights in captions do not work with SDXL."""
    if values["sdxl"] and values["weighted_captions"]:
        return error("weighted_captions", "Weights in captions are not offered for SDXL.", "Switch them off.")
    return None


@rule()
def sdxl_velocity(values: Values) -> Finding | None:
    """SDXL predicts noise."""
    if values["sdxl"] and values["v_parameterization"]:
        return warning(
            "v_parameterization",
            "Velocity prediction is unusual for SDXL.",
            "Make sure that the base model was trained so.",
        )
    return None


@rule("network_train_unet_only", families=("sdxl",))
def sdxl_text_encoders(values: Values) -> Finding | None:
    """Both text encoders of SDXL are large, and a network seldom gains by training them."""
    if values["network_train_unet_only"] or values["network_train_text_encoder_only"]:
        return None
    if _caches_captions(values):
        return None  # cached_captions_of_network says more
    rates = values["text_encoder_lr"] or [values["learning_rate"]]
    if not any(rates):
        return None
    return warning(
        "network_train_unet_only",
        "Both text encoders of SDXL are trained too, which takes much memory and seldom helps.",
        "Switch on network_train_unet_only; captions can be cached then.",
    )


@rule("text_encoder_lr")
def too_many_text_rates(values: Values) -> Finding | None:
    """Not more rates than text encoders."""
    rates, encoders = values["text_encoder_lr"] or [], 2 if values["family"] == "sdxl" else 1
    if len(rates) > encoders:
        return warning(
            "text_encoder_lr",
            f"There are {len(rates)} learning rates for {encoders} text encoder{'s' * (encoders > 1)}.",
            "The first ones count.",
        )
    return None


def _caches_captions(values: Values) -> bool:
    return bool(values.get("cache_text_encoder_outputs") or values.get("cache_text_encoder_outputs_to_disk"))


@rule("cache_text_encoder_outputs", "network_train_unet_only")
def cached_captions_of_network(values: Values) -> Finding | None:
    """Text encoders whose outputs are cached cannot be trained by a network."""
    if _caches_captions(values) and not values["network_train_unet_only"]:
        return error(
            "network_train_unet_only",
            "With encoded captions cached, the text encoders cannot be trained.",
            "Switch on network_train_unet_only, or switch off cache_text_encoder_outputs.",
        )
    return None


@rule("cache_text_encoder_outputs", "train_text_encoder")
def cached_captions_of_model(values: Values) -> Finding | None:
    """Text encoders whose outputs are cached cannot be trained with the model."""
    if _caches_captions(values) and values["train_text_encoder"]:
        return error(
            "train_text_encoder",
            "With encoded captions cached, the text encoders cannot be trained.",
            "Switch off either train_text_encoder or cache_text_encoder_outputs.",
        )
    return None


@rule("cache_text_encoder_outputs", "caption_dropout_rate")
def cached_captions_vary(values: Values) -> Finding | None:
    """A caption that is encoded once cannot vary."""
    if not _caches_captions(values):
        return None
    for key in CHANGING:
        if values[key]:
            return error(
                key,
                f"With encoded captions cached, {key} cannot change the captions any more.",
                f"Switch off either {key} or cache_text_encoder_outputs.",
            )
    return None


RULES: tuple[Rule, ...] = (
    other_family, sdxl_and_v2, sdxl_weights_in_captions, sdxl_velocity, sdxl_text_encoders, too_many_text_rates,
    cached_captions_of_network, cached_captions_of_model, cached_captions_vary,
)  # fmt: skip
