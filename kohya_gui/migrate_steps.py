"""The numbered steps from kohya_ss files of every age to today's options; each does one thing and says so.

A step takes the raw keys and leaves them a little more modern, or turns them into a value at once.
"""

from collections.abc import Callable

from kohya_gui.draft import TRUE, Draft, is_blank, is_number
from kohya_gui.model_kind import SWITCHES, from_switches
from kohya_gui.old_keys import QUICK_PICKS


def step_02_optimizer(draft: Draft) -> None:
    """v20: a switch for 8-bit Adam became a choice of optimizers."""
    if "use_8bit_adam" not in draft.raw:
        return
    switch = draft.raw.pop("use_8bit_adam")
    if draft.raw.get("optimizer") in (None, ""):
        draft.raw["optimizer"] = "AdamW8bit" if switch in (True, "True", "true", 1) else "AdamW"
        draft.say("renamed", "optimizer_type", f"use_8bit_adam became the optimizer {draft.raw['optimizer']}.")
    else:
        draft.say("retired", "use_8bit_adam", f"The optimizer {draft.raw['optimizer']} is named in the file.")


def step_03_lora_type(draft: Draft) -> None:
    """v21: LoCon is now one of the LyCORIS types."""
    if draft.raw.get("LoRA_type") == "LoCon":
        draft.raw["LoRA_type"] = "LyCORIS/LoCon"
        draft.say("renamed", "LoRA_type", "LoCon is now called LyCORIS/LoCon.")


def step_04_convolution_blocks(draft: Draft) -> None:
    """v21: conv_dims and conv_alphas were called conv_block_dims and conv_block_alphas from then on."""
    for old, new in (("conv_dims", "conv_block_dims"), ("conv_alphas", "conv_block_alphas")):
        if old not in draft.raw:
            continue
        value = draft.raw.pop(old)
        if value not in (None, "") and draft.raw.get(new) in (None, ""):
            draft.raw[new] = value
            draft.say("renamed", new, f"{old} is now called {new}.")
        elif value not in (None, ""):
            draft.extras[old] = value
            draft.say("retired", old, f"{new} says the same and is in the file too.")


def step_05_attention(draft: Draft) -> None:
    """v22: a switch for xformers became a choice; here these are two switches."""
    if "xformers" not in draft.raw:
        return
    value = draft.raw.pop("xformers")
    name = {"true": "xformers", "false": "none", "": "none"}.get(str(value).lower(), str(value).lower())
    draft.values["xformers"] = name == "xformers"
    draft.values["sdpa"] = name == "sdpa"
    if name not in ("xformers", "sdpa", "none"):
        draft.extras["xformers"] = value
        draft.say("repaired", "xformers", f"The attention {value!r} is unknown; none is chosen.")


def step_06_wandb(draft: Draft) -> None:
    """v23: a switch for Weights & Biases became a choice of trackers."""
    if "use_wandb" not in draft.raw:
        return
    value = draft.raw.pop("use_wandb")
    if value in (True, "True", "true", 1) and draft.raw.get("log_with") in (None, ""):
        draft.raw["log_with"] = "wandb"
        draft.say("renamed", "log_with", "use_wandb is now log_with = wandb.")


def step_07_prompts(draft: Draft) -> None:
    """The pages kept prompts themselves under the name of the trainer's file option."""
    value = draft.raw.get("sample_prompts")
    if not isinstance(value, str) or not value.strip():
        draft.raw.pop("sample_prompts", None)
        return
    single = "\n" not in value.strip()
    if single and value.strip().lower().endswith((".txt", ".toml", ".json")):
        return
    draft.values["sample_prompt_text"] = draft.raw.pop("sample_prompts")
    draft.say("renamed", "sample_prompt_text", "The prompts themselves stand in a field of their own now.")


def step_08_compiler(draft: Draft) -> None:
    """v24: the launcher's compiler setting; here it goes with the switch that turns compiling on."""
    value = draft.raw.get("dynamo_backend")
    if value in (None, "", "no", "none"):
        draft.raw.pop("dynamo_backend", None)
    elif "torch_compile" not in draft.raw:
        draft.raw["torch_compile"] = True
        draft.say("renamed", "torch_compile", f"The compiler {value} was chosen, so compiling is switched on.")


def step_09_half_vae(draft: Draft) -> None:
    """The switch for a VAE in full precision only counted for SDXL, and was on for everything else too."""
    if "sdxl_no_half_vae" not in draft.raw:
        return
    value = draft.raw.pop("sdxl_no_half_vae")
    if draft.on("sdxl"):
        draft.raw.setdefault("no_half_vae", value)
        draft.say("renamed", "no_half_vae", "sdxl_no_half_vae is now called no_half_vae.")
    else:
        draft.extras["sdxl_no_half_vae"] = value


def step_10_rates(draft: Draft) -> None:
    """A rate of 0 for both parts of a LoRA meant: the general rate."""
    if draft.tab != "lora":
        return
    zero = [key for key in ("unet_lr", "text_encoder_lr") if draft.raw.get(key) in (0, 0.0, "0", "0.0")]
    if len(zero) == 2:
        for key in zero:
            draft.raw.pop(key)
        draft.say(
            "repaired", "unet_lr", "Both rates were 0, which meant the general learning rate; they are empty now."
        )
    for key in ("unet_lr", "text_encoder_lr"):
        if draft.raw.get(key) == "":
            draft.raw.pop(key)


def step_11_length(draft: Draft) -> None:
    """Without a number of steps, the pages worked it out from the epochs."""
    raw = draft.raw
    unlimited = draft.blank("max_train_steps") and not (draft.newer and "max_train_steps" not in raw)
    for key in ("max_train_steps", "max_train_epochs"):
        if draft.blank(key):
            raw.pop(key, None)
    if "max_train_epochs" in raw or not unlimited:
        return
    if not draft.blank("epoch"):
        draft.values["max_train_steps"] = None
        draft.say("repaired", "epoch", f"No steps were given: they follow from the epochs ({raw['epoch']}), as before.")


def step_12_cycles(draft: Draft) -> None:
    """Without a number of restarts, the pages took the epochs."""
    if draft.raw.get("lr_scheduler_num_cycles") not in (None, ""):
        return
    draft.raw.pop("lr_scheduler_num_cycles", None)
    # Finetune never passed its epochs on here
    restarts = str(draft.raw.get("lr_scheduler", "")) == "cosine_with_restarts" and draft.tab != "finetune"
    if restarts and not draft.blank("epoch"):
        draft.raw["lr_scheduler_num_cycles"] = draft.raw["epoch"]
        draft.say("repaired", "lr_scheduler_num_cycles", f"It was empty, which meant the {draft.raw['epoch']} epochs.")


def step_13_formats(draft: Draft) -> None:
    """File formats of whole models that a network or embedding cannot be saved in; "as the model" is no format."""
    value = draft.raw.get("save_model_as")
    if value == "same as source model" and draft.tab in ("dreambooth", "finetune"):
        draft.raw.pop("save_model_as")
        draft.values["save_model_as"] = None
        return
    what = {"lora": "LoRA", "textual_inversion": "new word"}.get(draft.tab)
    if what and value not in (None, "", "safetensors", "ckpt", "pt"):
        draft.raw["save_model_as"] = "safetensors"
        draft.say("repaired", "save_model_as", f"A {what} cannot be saved as {value!r}; it is safetensors now.")


def step_14_hub_state(draft: Draft) -> None:
    """Going on from a state on the Hub was a text; it is a switch beside the state's name."""
    value = draft.raw.get("resume_from_huggingface")
    if isinstance(value, str) and value.strip().lower() not in ("", "true", "false"):
        draft.raw["resume_from_huggingface"] = True
        if draft.raw.get("resume") in (None, ""):
            draft.raw["resume"] = value
        draft.say(
            "repaired", "resume_from_huggingface", f"The state {value!r} on the Hub stands in the field of the state."
        )


def step_01_finetune(draft: Draft) -> None:
    """Finetune named its switch for SDXL and, in files beside the output, its two preparations otherwise."""
    for old, new in (
        ("sdxl_checkbox", "sdxl"),
        ("generate_caption_database", "create_caption"),
        ("generate_image_buckets", "create_buckets"),
    ):
        if old not in draft.raw or draft.tab != "finetune":
            continue
        value = draft.raw.pop(old)
        if new not in draft.raw:
            draft.raw[new] = value
            if new != "sdxl":
                draft.say("renamed", new, f"{old} is now called {new}.")
        else:
            draft.extras[old] = value
    option = draft.known.get("use_latent_files")
    if option is not None and option.type == "bool" and draft.raw.get("use_latent_files") in ("Yes", "No"):
        draft.raw["use_latent_files"] = draft.raw["use_latent_files"] == "Yes"


def step_15_stop_text_encoder(draft: Draft) -> None:
    """The pages asked for a percentage of the steps under the name of the trainer's number of steps."""
    if "stop_text_encoder_percent" not in draft.known:
        return
    given = [key for key in ("stop_text_encoder_training_pct", "stop_text_encoder_training") if key in draft.raw]
    values = [draft.raw.pop(key) for key in given]
    percent = next((value for value in values if not is_blank(value)), 0)
    if not is_number(percent):
        draft.extras[given[0]] = percent
        draft.say("repaired", given[0], f"{percent!r} is no percentage; the text encoder learns all the time.")
        return
    percent = int(float(percent))
    if percent < 0:
        draft.raw["stop_text_encoder_training"] = -1
        draft.say("renamed", "stop_text_encoder_training", "-1 % meant that the text encoder does not learn at all.")
    elif percent > 0:
        draft.raw["stop_text_encoder_percent"] = percent


def step_16_cached_captions(draft: Draft) -> None:
    """Encoding captions once had a field for SDXL only; without SDXL it did nothing."""
    old, new = "sdxl_cache_text_encoder_outputs", "cache_text_encoder_outputs"
    if old not in draft.raw or old in draft.known or new not in draft.known:
        return
    value = draft.raw.pop(old)
    if draft.on("sdxl") and new not in draft.raw:
        draft.raw[new] = value
        draft.say("renamed", new, f"{old} is now called {new}.")
    else:
        draft.extras[old] = value


def step_17_rates_of_parts(draft: Draft) -> None:
    """Older pages did not send rates of 0, so the general rate, or the trainer's own, held."""
    if draft.newer or draft.tab == "lora":
        return
    for key in ("learning_rate", "learning_rate_te", "learning_rate_te1", "learning_rate_te2"):
        if key in draft.raw and draft.blank(key):
            draft.extras[key] = draft.raw.pop(key)


def step_18_zeros(draft: Draft) -> None:
    """Where 0 was not sent: a longest gradient of 0 left the trainer's own, seed 0 of v23 on a new one each time; and
    Dreambooth of v23 on trained SDXL's text encoders unless their rates were 0."""
    sent = draft.newer and draft.tab in ("dreambooth", "finetune")
    if "max_grad_norm" in draft.raw and draft.blank("max_grad_norm") and not sent:
        draft.extras["max_grad_norm"] = draft.raw.pop("max_grad_norm")
    if not draft.newer:
        return
    if draft.raw.get("seed") in (0, "0") and not isinstance(draft.raw["seed"], bool):
        draft.extras["seed"] = draft.raw.pop("seed")
    rates = [draft.raw.get(key, 1e-5) for key in ("learning_rate_te1", "learning_rate_te2")]
    if draft.tab == "dreambooth" and draft.on("sdxl") and "train_text_encoder" not in draft.raw:
        draft.raw["train_text_encoder"] = any(is_number(rate) and float(rate) > 0 for rate in rates)


def step_19_model(draft: Draft) -> None:
    """The kind of base model: a list of models and three switches became one choice."""
    picked, model = draft.raw.get("model_list"), draft.raw.get("pretrained_model_name_or_path")
    if isinstance(picked, str) and picked in QUICK_PICKS and model in (None, ""):
        draft.raw["pretrained_model_name_or_path"] = picked
        draft.raw.update(QUICK_PICKS[picked])
        draft.say("repaired", "pretrained_model_name_or_path", f"The model {picked} was chosen from the list.")
    if "model_list" in draft.raw:
        draft.extras["model_list"] = draft.raw.pop("model_list")
    one_choice(draft)


def one_choice(draft: Draft) -> None:
    """Turn the switches v2, v_parameterization and sdxl into the choice of the model's family."""
    on = []
    for key in SWITCHES:
        value = draft.raw.pop(key, None)
        if isinstance(value, bool | int | str) and value in TRUE:
            on.append(key)
        elif not (is_blank(value) or (isinstance(value, str) and value.lower() == "false")):
            draft.extras[key] = value
            draft.say("repaired", key, f"{key} is neither on nor off in the file; the model's header tells.")
    if draft.raw.get("model_family") not in (None, "", "auto"):
        return
    made = from_switches(dict.fromkeys(on, True))
    draft.raw |= made
    if "model_family" in made:
        text = f"{' and '.join(on)} became the kind of base model: {made['model_family']}."
        draft.say("renamed", "model_family", text)


STEPS: tuple[Callable[[Draft], None], ...] = (
    step_01_finetune,
    step_02_optimizer,
    step_03_lora_type,
    step_04_convolution_blocks,
    step_05_attention,
    step_06_wandb,
    step_07_prompts,
    step_08_compiler,
    step_09_half_vae,
    step_10_rates,
    step_11_length,
    step_12_cycles,
    step_13_formats,
    step_14_hub_state,
    step_15_stop_text_encoder,
    step_16_cached_captions,
    step_17_rates_of_parts,
    step_18_zeros,
    step_19_model,
)
