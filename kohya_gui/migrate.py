"""Old kohya_ss files -> today's options, in numbered steps that each do one thing and say so.

A step takes the raw keys and leaves them a little more modern. Nothing is dropped: what has no field stays aside, under
its own name, and goes back into the file when it is saved.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kohya_gui import old_keys
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import aliases, convert, fields
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import OptionField
from sd_scripts.schema.retired import RETIRED
from sd_scripts.schema.suggest import nearest


@dataclass(frozen=True)
class ReportLine:
    """What happened to one key: "renamed", "repaired", "retired", "kept" (aside) or "unknown" (kept aside too)."""

    kind: str
    key: str
    message: str


@dataclass
class Draft:
    """A file on its way: keys not yet read, values made, keys kept aside, and the report."""

    raw: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    report: list[ReportLine] = field(default_factory=list)
    newer: bool = False

    def say(self, kind: str, key: str, message: str) -> None:
        """Add a line to the report."""
        self.report.append(ReportLine(kind, key, message))

    def blank(self, key: str) -> bool:
        """Whether a key is missing, empty or zero, as the old pages read it."""
        return self.raw.get(key) in (None, "", "0", 0, False)


def is_off(option: OptionField, value: Any) -> bool:
    """Whether a number stands for "not given"."""
    if option.off is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return _is_number(value) and float(value) == float(option.off)


# ---- the steps


def step_01_optimizer(draft: Draft) -> None:
    """v20: a switch for 8-bit Adam became a choice of optimizers."""
    if "use_8bit_adam" not in draft.raw:
        return
    switch = draft.raw.pop("use_8bit_adam")
    if draft.raw.get("optimizer") in (None, ""):
        draft.raw["optimizer"] = "AdamW8bit" if switch in (True, "True", "true", 1) else "AdamW"
        draft.say("renamed", "optimizer_type", f"use_8bit_adam became the optimizer {draft.raw['optimizer']}.")
    else:
        draft.say("retired", "use_8bit_adam", f"The optimizer {draft.raw['optimizer']} is named in the file.")


def step_02_lora_type(draft: Draft) -> None:
    """v21: LoCon is now one of the LyCORIS types."""
    if draft.raw.get("LoRA_type") == "LoCon":
        draft.raw["LoRA_type"] = "LyCORIS/LoCon"
        draft.say("renamed", "LoRA_type", "LoCon is now called LyCORIS/LoCon.")


def step_03_convolution_blocks(draft: Draft) -> None:
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


def step_04_attention(draft: Draft) -> None:
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


def step_05_wandb(draft: Draft) -> None:
    """v23: a switch for Weights & Biases became a choice of trackers."""
    if "use_wandb" not in draft.raw:
        return
    value = draft.raw.pop("use_wandb")
    if value in (True, "True", "true", 1) and draft.raw.get("log_with") in (None, ""):
        draft.raw["log_with"] = "wandb"
        draft.say("renamed", "log_with", "use_wandb is now log_with = wandb.")


def step_06_prompts(draft: Draft) -> None:
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


def step_07_compiler(draft: Draft) -> None:
    """v24: the launcher's compiler setting; here it goes with the switch that turns compiling on."""
    value = draft.raw.get("dynamo_backend")
    if value in (None, "", "no", "none"):
        draft.raw.pop("dynamo_backend", None)
    elif "torch_compile" not in draft.raw:
        draft.raw["torch_compile"] = True
        draft.say("renamed", "torch_compile", f"The compiler {value} was chosen, so compiling is switched on.")


def step_08_half_vae(draft: Draft) -> None:
    """The switch for a VAE in full precision only counted for SDXL, and was on for everything else too."""
    if "sdxl_no_half_vae" not in draft.raw:
        return
    value = draft.raw.pop("sdxl_no_half_vae")
    if draft.raw.get("sdxl") in (True, "True", "true", 1):
        draft.raw.setdefault("no_half_vae", value)
        draft.say("renamed", "no_half_vae", "sdxl_no_half_vae is now called no_half_vae.")
    else:
        draft.extras["sdxl_no_half_vae"] = value


def step_09_rates(draft: Draft) -> None:
    """A rate of 0 for both parts meant: the general rate."""
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


def step_10_length(draft: Draft) -> None:
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


def step_11_cycles(draft: Draft) -> None:
    """Without a number of restarts, the pages took the epochs."""
    if draft.raw.get("lr_scheduler_num_cycles") not in (None, ""):
        return
    draft.raw.pop("lr_scheduler_num_cycles", None)
    restarts = str(draft.raw.get("lr_scheduler", "")) == "cosine_with_restarts"
    if restarts and not draft.blank("epoch"):
        draft.raw["lr_scheduler_num_cycles"] = draft.raw["epoch"]
        draft.say("repaired", "lr_scheduler_num_cycles", f"It was empty, which meant the {draft.raw['epoch']} epochs.")


def step_12_formats(draft: Draft) -> None:
    """File formats of whole models that a network cannot be saved in."""
    value = draft.raw.get("save_model_as")
    if value not in (None, "", "safetensors", "ckpt", "pt"):
        draft.raw["save_model_as"] = "safetensors"
        draft.say("repaired", "save_model_as", f"A LoRA cannot be saved as {value!r}; it is safetensors now.")


def step_13_hub_state(draft: Draft) -> None:
    """Going on from a state on the Hub was a text; it is a switch beside the state's name."""
    value = draft.raw.get("resume_from_huggingface")
    if isinstance(value, str) and value.strip().lower() not in ("", "true", "false"):
        draft.raw["resume_from_huggingface"] = True
        if draft.raw.get("resume") in (None, ""):
            draft.raw["resume"] = value
        draft.say(
            "repaired", "resume_from_huggingface", f"The state {value!r} on the Hub stands in the field of the state."
        )


STEPS: tuple[Callable[[Draft], None], ...] = (
    step_01_optimizer,
    step_02_lora_type,
    step_03_convolution_blocks,
    step_04_attention,
    step_05_wandb,
    step_06_prompts,
    step_07_compiler,
    step_08_half_vae,
    step_09_rates,
    step_10_length,
    step_11_cycles,
    step_12_formats,
    step_13_hub_state,
)


def migrate(raw: dict[str, Any], command: str) -> Draft:
    """Read a whole kohya_ss file. Values that cannot be read are kept aside and reported, never guessed."""
    draft = modernise(raw, command)
    _fill(draft, command, set(raw))
    return draft


def modernise(raw: dict[str, Any], command: str) -> Draft:
    """Read keys as kohya_ss names them, as far as they are there; missing ones stay missing."""
    draft = Draft(dict(raw), newer=bool(old_keys.ONLY_V26 & raw.keys()))
    for step in STEPS:
        step(draft)
    _rename(draft, command)
    read_values(draft, command)
    return draft


def _rename(draft: Draft, command: str) -> None:
    for old, new in aliases(command).items():
        if old not in draft.raw:
            continue
        value = draft.raw.pop(old)
        if new in draft.raw and draft.raw[new] not in (None, ""):
            draft.extras[old] = value
            draft.say("retired", old, f"{new} says the same and is in the file too.")
        else:
            draft.raw[new] = value
            if value not in (None, ""):
                draft.say("renamed", new, f"{old} is now called {new}.")


def read_values(draft: Draft, command: str) -> None:
    """Turn what is left in the raw keys into values of the options' types; the rest goes aside."""
    known = fields(command)
    aside: dict[str, list[str]] = {}
    for key, value in draft.raw.items():
        if key not in known:
            _put_aside(draft, key, value, aside, known)
            continue
        option = known[key]
        if value is None or value == "" or is_off(option, value):
            continue
        try:
            made = _typed(option, value)
        except UserError as problem:
            draft.extras[key] = value
            draft.say("repaired", key, f"{problem.message} It is left at its default.")
            continue
        if made is None or is_off(option, made):
            continue
        draft.values[key] = made
    for name, keys in aside.items():
        draft.say("kept", keys[0], f"Settings for {name} have no field here; they stay in the file: {', '.join(keys)}.")
    draft.raw = {}


def _typed(option: OptionField, value: Any) -> Any:
    """The value in the option's type. Numbers out of range and unknown choices stay, so that the form can mark them."""
    if isinstance(value, dict) or (isinstance(value, list) and not option.type.startswith("list")):
        raise UserError(f"{option.key} holds a list or table where {option.label!r} takes one value.", option.key)
    if option.type.startswith("list") and isinstance(value, str):
        value = value.replace("“", '"').replace("”", '"')
    try:
        return convert(option, value)
    except UserError:
        if option.key == "LoRA_type" and isinstance(value, str):
            return value
        if option.type in ("int", "int_or_float") and isinstance(value, float | str):
            # old files hold 64.0, "1.0" and slider values such as 5.5 where a whole number is meant
            return convert(option, round(float(value))) if _is_number(value) else convert(option, value)
        raise


def _is_number(value: Any) -> bool:
    try:
        return abs(float(value)) < 1e15
    except (TypeError, ValueError, OverflowError):
        return False


def _put_aside(draft: Draft, key: str, value: Any, aside: dict[str, list[str]], known: Any) -> None:
    draft.extras[key] = value
    family = old_keys.family_of(key)
    if family:
        aside.setdefault(family, []).append(key)
    elif key in old_keys.GONE or key in RETIRED:
        draft.say("retired", key, f"{key} has no effect any more: {old_keys.GONE.get(key) or RETIRED[key]}.")
    else:
        hint = nearest(key, known)
        draft.say("unknown", key, f"{key} is not known here; it stays in the file. {hint}".strip())


def _fill(draft: Draft, command: str, present: set[str]) -> None:
    """Missing keys: what the program that wrote the file would have used, where our default is another."""
    defaults = {**old_keys.DEFAULTS, **(old_keys.DEFAULTS_V26 if draft.newer else {})}
    read = {old for old, new in aliases(command).items() if old in present and new in defaults}
    covered = present | draft.values.keys() | {aliases(command)[old] for old in read}
    kind = LORA_TYPES.get(str(draft.values.get("LoRA_type", "Standard")))
    offered = {key for key, _ in kind.args} if kind else set()
    filled = []
    for key, value in defaults.items():
        if key in covered or key not in fields(command):
            continue
        if key in ("conv_dim", "conv_alpha", "unit") and key not in offered:
            continue
        draft.values[key] = list(value) if isinstance(value, list) else value
        filled.append(key)
    if filled:
        message = "What is missing in the file has the value of the program that wrote it: "
        draft.say("repaired", filled[0], message + ", ".join(filled) + ".")
