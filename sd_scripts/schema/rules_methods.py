"""Rules over the ways of training other than networks: whole models, embeddings, control networks."""

from .errors import UserError
from .finding import Finding, Rule, Values, error, rule, warning
from .values import parse_block_rates, trains_text_encoder

_TEXT_RATES = ("learning_rate_te", "learning_rate_te1", "learning_rate_te2")
_CONTROL = ("controlnet", "lllite")


@rule("block_lr")
def block_rates(values: Values) -> Finding | None:
    """The rates of the U-Net's parts can be read, and each has one."""
    try:
        parse_block_rates(values["block_lr"] or "")
    except UserError as problem:
        return error(problem.key, problem.message, problem.hint)
    return None


@rule(methods=("full",))
def text_rate_without_part(values: Values) -> Finding | None:
    """A rate for a text encoder that is not trained has no effect."""
    if trains_text_encoder(values):
        return None
    for key in _TEXT_RATES:
        if values.get(key):
            way = "stop_text_encoder_training is -1" if "stop_text_encoder_training" in values else "it is not trained"
            return warning(
                key,
                f"{key} has no effect on the text encoder: {way}.",
                "" if "stop_text_encoder_training" in values else "Switch on train_text_encoder.",
            )
    return None


@rule("stochastic_rounding")
def rounding_without_bf16(values: Values) -> Finding | None:
    """Rounding at random is for weights that are kept in bf16."""
    if values["stochastic_rounding"] and not values["full_bf16"]:
        return error(
            "stochastic_rounding",
            "Stochastic rounding is for weights that are kept in bf16.",
            "Switch on full_bf16, or this off.",
        )
    return None


@rule(methods=("full",))
def small_weights_learn(values: Values) -> Finding | None:
    """Weights that are trained are never kept in 8 bits."""
    if values["fp8_base"]:
        return warning(
            "fp8_base",
            "fp8_base has no effect: the weights of the base model are trained, so they are not kept in 8 bits.",
            "full_bf16 saves memory.",
        )
    return None


@rule("use_safetensors")
def two_formats(values: Values) -> Finding | None:
    """A chosen file format goes before the older switch."""
    chosen = values["save_model_as"]
    if values["use_safetensors"] and chosen and "safetensors" not in chosen:
        return warning("use_safetensors", f"use_safetensors has no effect: the file format {chosen} is chosen.")
    return None


@rule("no_token_padding")
def padding_of_long_captions(values: Values) -> Finding | None:
    """Captions in several parts are filled up to whole parts."""
    if values["no_token_padding"] and values["max_token_length"]:
        return error(
            "no_token_padding",
            f"Captions of {values['max_token_length']} tokens are read in parts, which must be filled.",
            "Switch off no_token_padding, or leave max_token_length empty.",
        )
    return None


@rule(methods=("full",))
def metadata_for_fine_tuning(values: Values) -> Finding | None:
    """Fine-tuning reads captions from a metadata file, DreamBooth from picture folders."""
    if values["command"] != "fine_tune" or any(values[k] for k in ("in_json", "dataset_config", "dataset_class")):
        return None
    return error(
        "in_json",
        "The metadata file of the pictures is missing.",
        "Give in_json or a dataset description file; train_db.py trains from picture folders alone.",
    )


@rule("token_string")
def new_word(values: Values) -> Finding | None:
    """There is a word to learn."""
    if values["token_string"] and values["token_string"].strip():
        return None
    return error("token_string", "The new word to learn is missing.", "Give token_string, for instance mycat4.")


@rule("use_object_template")
def two_templates(values: Values) -> Finding | None:
    """The new word names a thing or a style."""
    if values["use_object_template"] and values["use_style_template"]:
        return error(
            "use_style_template",
            "The new word cannot stand for an object and for a style at once.",
            "Switch off use_object_template or use_style_template.",
        )
    return None


@rule("init_word")
def two_starts(values: Values) -> Finding | None:
    """An embedding file goes before the words to start from."""
    if values["weights"] and values["init_word"]:
        return warning("init_word", "The words to start from have no effect: an embedding file is given.")
    return None


@rule(methods=("xti",))
def foreign_dataset_of_xti(values: Values) -> Finding | None:
    """XTI prepares the captions itself."""
    if values["dataset_class"]:
        return error("dataset_class", "XTI cannot take its pictures from a dataset class.", "Give picture folders.")
    return None


@rule("conditioning_data_dir", methods=_CONTROL)
def control_pictures(values: Values) -> Finding | None:
    """A control network needs control pictures."""
    if any(values[key] for key in ("conditioning_data_dir", "dataset_config", "dataset_class")):
        return None
    return error(
        "conditioning_data_dir",
        "There are no control pictures.",
        "Give the folder with one of the same name for each picture, or a dataset description file.",
    )


@rule(methods=_CONTROL)
def cropped_control_pictures(values: Values) -> Finding | None:
    """A picture and its control picture are cut at the same place."""
    if values["random_crop"]:
        return error(
            "random_crop",
            "Pictures cannot be cropped at random together with control pictures.",
            "Switch off random_crop.",
        )
    return None


@rule()
def notes_without_place(values: Values) -> Finding | None:
    """Descriptions stand in safetensors files only, and not in those of XTI and ControlNet."""
    key = next((key for key in values if key.startswith("metadata_") and values[key]), None)
    if key is None:
        return None
    if values["method"] in ("xti", "controlnet"):
        return warning(key, f"{key} has no effect: the files of this trainer hold no description.")
    if values["save_model_as"] not in (None, "safetensors"):
        return warning(
            key, f"{key} has no effect: only safetensors files hold a description.", "Set save_model_as to safetensors."
        )
    return None


RULES: tuple[Rule, ...] = (
    block_rates, text_rate_without_part, rounding_without_bf16, small_weights_learn, two_formats,
    padding_of_long_captions, metadata_for_fine_tuning, new_word, two_templates, two_starts, foreign_dataset_of_xti,
    control_pictures, cropped_control_pictures, notes_without_place,
)  # fmt: skip
