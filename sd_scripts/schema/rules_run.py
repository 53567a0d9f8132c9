"""Rules over saving, samples, validation, logging, devices and processes."""

from .finding import Finding, Rule, Values, error, rule, warning


@rule()
def needs_output(values: Values) -> Finding | None:
    """There is a folder to write to."""
    if values["output_dir"]:
        return None
    return error("output_dir", "The output folder is missing.", "Give a folder; it is made if it does not exist.")


@rule()
def name_is_no_path(values: Values) -> Finding | None:
    """The name of the result is no path."""
    name = values["output_name"]
    if name and ("/" in name or "\\" in name or name in (".", "..")):
        return error(
            "output_name",
            f"The name of the result is {name!r}, but must be a plain name.",
            "The folder goes into output_dir.",
        )
    return None


@rule()
def keep_last(values: Values) -> Finding | None:
    """Keeping the last files needs files in between."""
    for unit in ("epochs", "steps"):
        between = values[f"save_every_n_{unit}"] or (values["save_n_epoch_ratio"] if unit == "epochs" else None)
        for key in (f"save_last_n_{unit}", f"save_last_n_{unit}_state"):
            if values[key] and not between:
                return warning(key, f"{key} has no effect: nothing is saved between.", f"Set save_every_n_{unit}.")
    return None


@rule()
def save_too_late(values: Values) -> Finding | None:
    """An interval longer than the training."""
    every = values["save_every_n_steps"]
    if every and values["max_train_epochs"] is None and every > values["max_train_steps"]:
        return warning(
            "save_every_n_steps",
            f"The training of {values['max_train_steps']} steps ends before the first save at {every}.",
        )
    epochs = values["save_every_n_epochs"]
    if epochs and values["max_train_epochs"] and epochs > values["max_train_epochs"]:
        return warning(
            "save_every_n_epochs",
            f"The training of {values['max_train_epochs']} epochs ends before the first save at {epochs}.",
        )
    return None


def _sample_interval(values: Values) -> bool:
    return (
        any((values[key] or 0) > 0 for key in ("sample_every_n_steps", "sample_every_n_epochs"))
        or values["sample_at_first"]
    )


@rule()
def prompts_missing(values: Values) -> Finding | None:
    """Samples need prompts."""
    if _sample_interval(values) and not values["sample_prompts"] and not values["sample_prompt_text"]:
        return warning(
            "sample_prompts", "No samples are made: there are no prompts.", "Give prompts, or a file of them."
        )
    return None


@rule()
def samples_never(values: Values) -> Finding | None:
    """Prompts need a time."""
    if (values["sample_prompts"] or values["sample_prompt_text"]) and not _sample_interval(values):
        return warning(
            "sample_every_n_epochs",
            "No samples are made: it is not said when.",
            "Set samples every 1 epoch, for instance.",
        )
    return None


@rule()
def negative_interval(values: Values) -> Finding | None:
    """Intervals of samples below zero count as none."""
    for key in ("sample_every_n_steps", "sample_every_n_epochs"):
        if (values[key] or 0) < 0:
            return warning(key, f"{key} is {values[key]}, which counts as none.", "Leave it empty.")
    return None


@rule()
def validation_without_share(values: Values) -> Finding | None:
    """Measuring needs pictures set aside."""
    given = [
        key for key in ("validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps") if values[key]
    ]
    if given and not values["validation_split"] and not values["dataset_config"]:
        return warning(
            given[0],
            f"{given[0]} has no effect: no pictures are set aside.",
            "Set validation_split, for instance to 0.1.",
        )
    return None


@rule()
def validation_takes_all(values: Values) -> Finding | None:
    """Something must be left to train on."""
    if values["validation_split"] >= 1:
        return error("validation_split", "All pictures are set aside, none is left to train on.", "0.1 is usual.")
    return None


@rule()
def tensorboard_folder(values: Values) -> Finding | None:
    """TensorBoard needs a folder."""
    if values["log_with"] in ("tensorboard", "all") and not values["logging_dir"]:
        return error("logging_dir", f"Logging with {values['log_with']} needs a log folder.", "Give logging_dir.")
    return None


@rule()
def start_inside(values: Values) -> Finding | None:
    """The start lies inside the training."""
    step, epoch = values["initial_step"], values["initial_epoch"]
    if step and values["max_train_epochs"] is None and step >= values["max_train_steps"]:
        return error(
            "initial_step",
            f"The start at step {step} is not before the end at {values['max_train_steps']}.",
            "Raise max_train_steps.",
        )
    if epoch and values["max_train_epochs"] and epoch > values["max_train_epochs"]:
        return error(
            "initial_epoch",
            f"The start at epoch {epoch} is after the last, {values['max_train_epochs']}.",
            "Raise max_train_epochs.",
        )
    return None


@rule()
def skip_to_nowhere(values: Values) -> Finding | None:
    """Skipping needs a start."""
    if values["skip_until_initial_step"] and not any(
        values[key] for key in ("initial_step", "initial_epoch", "resume")
    ):
        return warning("skip_until_initial_step", "There is nothing to skip: no starting step or epoch is given.")
    return None


@rule()
def hub_state(values: Values) -> Finding | None:
    """Uploads need their sources and a repository."""
    if values["resume_from_huggingface"] and not values["resume"]:
        return error(
            "resume",
            "Going on from a state on the Hub needs its path.",
            "Give resume as repository/path:revision:kind.",
        )
    for key in ("save_state_to_huggingface", "async_upload"):
        if values[key] and not values["huggingface_repo_id"]:
            return warning(
                key, f"{key} has no effect: no repository to upload to is given.", "Give huggingface_repo_id."
            )
    if values["save_state_to_huggingface"] and not (values["save_state"] or values["save_state_on_train_end"]):
        return warning(
            "save_state_to_huggingface", "No states are uploaded, since none are saved.", "Switch on save_state."
        )
    return None


@rule()
def one_attention(values: Values) -> Finding | None:
    """One kind of attention is used."""
    chosen = [key for key in ("mem_eff_attn", "xformers", "sdpa") if values[key]]
    if len(chosen) > 1:
        return warning(chosen[1], f"Of {' and '.join(chosen)} only {chosen[0]} is used.", "Choose one.")
    return None


@rule()
def one_memory_plan(values: Values) -> Finding | None:
    """Little memory and plenty of it contradict each other."""
    if values["lowram"] and values["highvram"]:
        return warning("highvram", "lowram and highvram are both set.", "Leave one of both off.")
    return None


@rule()
def compile_with_nothing(values: Values) -> Finding | None:
    """Compiling needs a back end."""
    if values["torch_compile"] and values["dynamo_backend"] == "no":
        return warning("dynamo_backend", "The model is not compiled, since the back end is no.", "Choose inductor.")
    return None


@rule()
def deepspeed_places(values: Values) -> Finding | None:
    """DeepSpeed's places fit its stage."""
    if not values["deepspeed"]:
        return None
    for what in ("optimizer", "param"):
        if values[f"offload_{what}_device"] == "nvme" and not values[f"offload_{what}_nvme_path"]:
            return error(
                f"offload_{what}_nvme_path",
                "The folder on the fast disk is missing.",
                f"Give offload_{what}_nvme_path.",
            )
    for key in ("offload_param_device", "zero3_init_flag", "zero3_save_16bit_model"):
        if values[key] and values["zero_stage"] != 3:
            return error(
                key,
                f"{key} works with ZeRO stage 3 only, not {values['zero_stage']}.",
                "Set zero_stage to 3, or leave it out.",
            )
    return None


@rule()
def processes_and_gpus(values: Values) -> Finding | None:
    """Several processes and several GPUs belong together."""
    processes = values["num_processes"]
    if processes > 1 and not values["multi_gpu"]:
        return warning(
            "multi_gpu", f"There are {processes} processes asked for, but not several GPUs.", "Switch on Several GPUs."
        )
    if values["multi_gpu"] and processes == 1 and values["num_machines"] == 1:
        return warning(
            "num_processes", "Several GPUs are asked for, but only one process.", "Give one process for each GPU."
        )
    ids = [part for part in (values["gpu_ids"] or "").split(",") if part.strip()]
    if len(ids) > 1 and processes // max(values["num_machines"], 1) > len(ids):
        return error("gpu_ids", f"There are {processes} processes for {len(ids)} GPUs.", "Name a GPU for each process.")
    return None


@rule()
def several_machines(values: Values) -> Finding | None:
    """Machines must find each other."""
    machines, rank = values["num_machines"], values["machine_rank"]
    if rank >= machines:
        return error(
            "machine_rank",
            f"The number of this machine is {rank}, but must be below {machines}.",
            "The first machine is 0.",
        )
    if machines > 1 and not values["main_process_ip"]:
        return error(
            "main_process_ip",
            f"Training on {machines} machines needs the address of the first one.",
            "Give main_process_ip.",
        )
    if values["num_processes"] < machines:
        return error(
            "num_processes",
            f"There are {values['num_processes']} processes for {machines} machines.",
            "Give at least one for each.",
        )
    return None


RULES: tuple[Rule, ...] = (
    needs_output, name_is_no_path, keep_last, save_too_late, prompts_missing, samples_never, negative_interval,
    validation_without_share, validation_takes_all, tensorboard_folder, start_inside, skip_to_nowhere, hub_state,
    one_attention, one_memory_plan, compile_with_nothing, deepspeed_places, processes_and_gpus, several_machines,
)  # fmt: skip
