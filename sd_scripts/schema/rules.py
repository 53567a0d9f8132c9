"""Everything that is wrong or doubtful with a set of options, and what options follow from others.

Nothing here opens a file: whether folders exist is for those who use them.
"""

from collections.abc import Mapping
from typing import Any

from . import (
    rules_data,
    rules_learning,
    rules_lycoris,
    rules_methods,
    rules_network,
    rules_networks,
    rules_plugins,
    rules_run,
    rules_sdxl,
)
from .fields import complete, fields, find_command, problem, trainer_fields
from .finding import Finding, Rule
from .loratypes import LORA_TYPES
from .values import trains_text_encoder

__all__ = ["Finding", "RULES", "check", "implied"]

_BRINGS = (
    ("cache_latents_to_disk", "cache_latents"),
    ("cache_text_encoder_outputs_to_disk", "cache_text_encoder_outputs"),
    ("cpu_offload_checkpointing", "gradient_checkpointing"),
    ("diffusers_xformers", "xformers"),
)

RULES: tuple[Rule, ...] = (
    rules_data.RULES
    + rules_network.RULES
    + rules_networks.RULES
    + rules_lycoris.RULES
    + rules_plugins.RULES
    + rules_sdxl.RULES
    + rules_learning.RULES
    + rules_methods.RULES
    + rules_run.RULES
)


def check(command: str, values: Mapping[str, Any]) -> list[Finding]:
    """What is wrong or doubtful, errors first; a missing key counts as its default.

    `values` should hold only what is sent: a form leaves out what does not apply. With a LoRA type and no network
    module, the module of that type counts.

    Raises:
        UserError: for an unknown command.
    """
    known = fields(command)
    findings = [
        Finding("error", key, f"{known[key].label} is {value!r}, but {complaint}.")
        for key, value in values.items()
        if key in known and (complaint := problem(known[key], value))
    ]
    wrong = {finding.key for finding in findings}
    filled = filled_in(command, {key: value for key, value in values.items() if key not in wrong})
    findings += [finding for rule in RULES if (finding := rule(filled)) is not None]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def filled_in(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as rules read them: defaults where a key is missing, and what is known of the command.

    Beside the options of the command stand "command", "family" and "method", and "sdxl" (an option of the page) is true
    for trainers of SDXL.

    Raises:
        UserError: for an unknown command.
    """
    found = find_command(command)
    filled = complete(command, values)
    if values.get("LoRA_type") in LORA_TYPES and not filled.get("network_module", True):
        filled["network_module"] = LORA_TYPES[values["LoRA_type"]].module
    filled["sdxl"] = filled["sdxl"] or found.family == "sdxl"
    return filled | {"command": command, "family": found.family, "method": found.method}


def implied(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that others bring with them, with their values; the rest stays as it is.

    `values` hold at least every option that the command offers. The result may name options that it does not offer:
    train_db says with stop_text_encoder_training whether the text encoder is trained, and that sets train_text_encoder.

    Raises:
        UserError: for an unknown command.
    """
    found: dict[str, Any] = {}
    for key, brings in _BRINGS:
        if values.get(key):
            found[brings] = True
    if values["caption_extention"]:
        found["caption_extension"] = values["caption_extention"]
    if values["deepspeed"]:
        # as the known scripts do with DeepSpeed, whatever was asked for
        found["max_data_loader_n_workers"] = 1
    for key in ("sample_every_n_steps", "sample_every_n_epochs"):
        if (values[key] or 0) < 0:
            found[key] = None
    if find_command(command).method == "full":
        found["train_text_encoder"] = trains_text_encoder({key: values[key] for key in trainer_fields(command)})
        # the weights that learn cannot be kept in 8 bits
        found["fp8_base"] = False
    return found
