"""Everything that is wrong or doubtful with a set of options, and what options follow from others.

Nothing here opens a file: whether folders exist is for those who use them.
"""

from collections.abc import Mapping
from typing import Any

from . import rules_data, rules_learning, rules_run
from .fields import complete, fields, find_command, problem
from .finding import Finding, Rule
from .loratypes import LORA_TYPES

__all__ = ["Finding", "RULES", "check", "implied"]

RULES: tuple[Rule, ...] = rules_data.RULES + rules_learning.RULES + rules_run.RULES


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
    filled = complete(command, {key: value for key, value in values.items() if key not in wrong})
    if values.get("LoRA_type") in LORA_TYPES and not filled["network_module"]:
        filled["network_module"] = LORA_TYPES[values["LoRA_type"]].module
    filled["family"] = find_command(command).family  # no option, but rules about models need it
    findings += [finding for rule in RULES if (finding := rule(filled)) is not None]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that others bring with them, with their values; the rest stays as it is.

    `values` must be complete.
    """
    found: dict[str, Any] = {}
    if values["cache_latents_to_disk"]:
        found["cache_latents"] = True
    if values["cpu_offload_checkpointing"]:
        found["gradient_checkpointing"] = True
    if values["caption_extention"]:
        found["caption_extension"] = values["caption_extention"]
    if values["deepspeed"]:
        # as the known scripts do with DeepSpeed, whatever was asked for
        found["max_data_loader_n_workers"] = 1
    for key in ("sample_every_n_steps", "sample_every_n_epochs"):
        if (values[key] or 0) < 0:
            found[key] = None
    return found
