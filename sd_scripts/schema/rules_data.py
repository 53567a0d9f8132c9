"""Rules over model, pictures and captions."""

from .errors import UserError
from .finding import Finding, Rule, Values, error, rule, warning
from .values import parse_face_crop_range, parse_resolution


@rule()
def needs_model(values: Values) -> Finding | None:
    """There is a base model."""
    key = "pretrained_model_name_or_path"
    return (
        None
        if values[key]
        else error(key, "The base model is missing.", "Give a file, a diffusers folder or a Hub name.")
    )


@rule()
def needs_pictures(values: Values) -> Finding | None:
    """There are pictures from some source."""
    if any(values.get(key) for key in ("train_data_dir", "dataset_config", "in_json", "dataset_class")):
        return None
    return error(
        "train_data_dir",
        "There are no pictures to train on.",
        "Give the folder of the pictures, or a dataset description file.",
    )


@rule()
def needs_resolution(values: Values) -> Finding | None:
    """A resolution is given, unless a description or metadata file may carry it, and it can be read."""
    if not values["resolution"]:
        if values["dataset_config"] or values["dataset_class"] or values.get("in_json"):
            return None
        return error(
            "resolution",
            "The resolution is missing.",
            "1024 suits SDXL." if values["sdxl"] else "512 suits Stable Diffusion 1, 768 the larger versions of 2.",
        )
    try:
        width, height = parse_resolution(values["resolution"])
    except UserError as problem:
        return error(problem.key, problem.message, problem.hint)
    if not values["enable_bucket"] and (width % 8 or height % 8):
        return error(
            "resolution",
            f"The resolution is {width}x{height}, but both sides must be multiples of 8.",
            "Use a multiple of 64, or switch on buckets.",
        )
    return None


@rule()
def bucket_range(values: Values) -> Finding | None:
    """The resolution lies between the smallest and the largest side of buckets."""
    if not values["enable_bucket"] or not values["resolution"]:
        return None
    low, high = values["min_bucket_reso"], values["max_bucket_reso"]
    if low > high:
        return error(
            "min_bucket_reso", f"The smallest side of buckets ({low}) is above the largest ({high}).", "Swap them."
        )
    try:
        sides = parse_resolution(values["resolution"])
    except UserError:
        return None  # needs_resolution reports it
    if values["bucket_no_upscale"]:
        return None
    if min(sides) < low:
        return error(
            "min_bucket_reso",
            f"The smallest side of buckets ({low}) is above the resolution ({min(sides)}).",
            f"Set it to {min(sides)} or less.",
        )
    if max(sides) > high:
        return error(
            "max_bucket_reso",
            f"The largest side of buckets ({high}) is below the resolution ({max(sides)}).",
            f"Set it to {max(sides)} or more.",
        )
    return None


@rule()
def bucket_steps(values: Values) -> Finding | None:
    """Sides of buckets suit the model."""
    step = values["bucket_reso_steps"]
    if step % 8:
        return error(
            "bucket_reso_steps", f"The step between bucket sizes is {step}, but must be a multiple of 8.", "Use 64."
        )
    if not values["enable_bucket"] or step % 64 == 0:
        return None
    if values["sdxl"] and step % 32:
        return error(
            "bucket_reso_steps",
            f"The step between bucket sizes is {step}, but SDXL needs a multiple of 32.",
            "Use 32 or 64.",
        )
    if values["sdxl"]:
        return None
    return warning(
        "bucket_reso_steps",
        f"With a step of {step} between bucket sizes the U-Net works on odd sizes, slightly worse.",
        "64 is usual.",
    )


@rule()
def face_crop(values: Values) -> Finding | None:
    """The range of face crops can be read."""
    try:
        parse_face_crop_range(values["face_crop_aug_range"])
    except UserError as problem:
        return error(problem.key, problem.message, problem.hint)
    return None


@rule()
def cache_or_augment(values: Values) -> Finding | None:
    """Cached pictures cannot be changed any more."""
    if not values["cache_latents"] and not values["cache_latents_to_disk"]:
        return None
    for key, words in (("color_aug", "colours cannot vary"), ("random_crop", "pictures cannot be cropped at random")):
        if values[key]:
            return error(key, f"With encoded pictures cached, {words}.", f"Switch off either cache_latents or {key}.")
    return None


@rule()
def description_or_folders(values: Values) -> Finding | None:
    """A dataset description takes the place of folders."""
    ignored = [key for key in ("train_data_dir", "reg_data_dir", "in_json") if values.get(key)]
    if not values["dataset_config"] or not ignored:
        return None
    return warning(
        "dataset_config",
        f"The dataset description file counts; {', '.join(ignored)} has no effect.",
        "Leave one of both out.",
    )


@rule("in_json", "reg_data_dir")
def metadata_and_regularisation(values: Values) -> Finding | None:
    """A metadata file knows no regularisation pictures."""
    if values["in_json"] and values["reg_data_dir"] and not values["dataset_config"]:
        return warning("reg_data_dir", "Regularisation pictures have no effect together with a metadata file.")
    return None


@rule()
def foreign_dataset(values: Values) -> Finding | None:
    """A dataset class is foreign code."""
    if values["dataset_class"] and not values["allow_plugins"]:
        return error(
            "dataset_class",
            f"The dataset class {values['dataset_class']} is foreign code.",
            "Add --allow_plugins if you trust it.",
        )
    return None


@rule("masked_loss")
def masks(values: Values) -> Finding | None:
    """A masked loss needs masks."""
    if values["masked_loss"] and not any(
        values.get(key) for key in ("conditioning_data_dir", "alpha_mask", "dataset_config")
    ):
        return warning(
            "masked_loss",
            "The masked loss has no masks, so it has no effect.",
            "Give a folder of masks, or use transparency as mask.",
        )
    return None


@rule()
def idle_workers(values: Values) -> Finding | None:
    """Only existing loading processes can be kept."""
    if values["persistent_data_loader_workers"] and not values["max_data_loader_n_workers"]:
        return warning(
            "persistent_data_loader_workers",
            "There are no loading processes to keep.",
            "Give 1 or 2 loading processes.",
        )
    return None


@rule()
def velocity_without_v2(values: Values) -> Finding | None:
    """Velocity prediction belongs to Stable Diffusion 2."""
    if values["v_parameterization"] and not values["v2"] and not values["sdxl"]:
        return warning(
            "v_parameterization",
            "Velocity prediction is unusual for Stable Diffusion 1.",
            "Make sure that the base model was trained so.",
        )
    return None


@rule()
def clip_skip_in_v2(values: Values) -> Finding | None:
    """Stable Diffusion 2 and SDXL already read an earlier layer."""
    if values["clip_skip"] is None or values["clip_skip"] == 1 or not (values["v2"] or values["sdxl"]):
        return None
    name = "SDXL" if values["sdxl"] else "Stable Diffusion 2"
    return warning("clip_skip", f"CLIP skip is unusual for {name}, which already skips a layer.", "Leave it at 1.")


@rule()
def pairs(values: Values) -> Finding | None:
    """Lists of settings consist of name=value."""
    for key in ("network_args", "optimizer_args", "lr_scheduler_args"):
        for item in values.get(key) or []:
            if "=" not in item or item.startswith("="):
                return error(
                    key,
                    f"{key} holds {item!r}, which is not name=value.",
                    "Write each as name=value without blanks around the sign.",
                )
    return None


RULES: tuple[Rule, ...] = (
    needs_model, needs_pictures, needs_resolution, bucket_range, bucket_steps, face_crop, cache_or_augment,
    description_or_folders, metadata_and_regularisation, foreign_dataset, masks, idle_workers, velocity_without_v2,
    clip_skip_in_v2, pairs,
)  # fmt: skip
