"""The arguments and environment of `accelerate launch`: every setting said, nothing left to a stray file."""

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import split_words
from sd_scripts.schema.suggest import nearest

NEUTRAL_CONFIG = Path(__file__).resolve().parent / "accelerate_neutral.json"
_ADDRESS = re.compile(r"\[?[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,252}\]?")
_NEAR_NAMES = (".local", ".lan", ".internal", ".home.arpa", ".localdomain", ".home")
# what providers and private meshes give out
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_GPU_IDS = re.compile(r"^\d+(,\d+)*$")
# what a person may add, with the number of values; nothing here can name another program to run
_EXTRA = {
    "config_file": 1,
    "debug": 0,
    "quiet": 0,
    "same_network": 0,
    "enable_cpu_affinity": 0,
    "dynamo_use_regional_compilation": 0,
    "downcast_bf16": 0,
    "rdzv_backend": 1,
    "rdzv_conf": 1,
    "max_restarts": 1,
    "monitor_interval": 1,
    "role": 1,
    "tee": 1,
    "log_dir": 1,
    "deepspeed_config_file": 1,
    "deepspeed_hostfile": 1,
    "deepspeed_multinode_launcher": 1,
    "use_deepspeed": 0,
    "zero_stage": 1,
    "offload_optimizer_device": 1,
    "offload_optimizer_nvme_path": 1,
    "offload_param_device": 1,
    "offload_param_nvme_path": 1,
    "zero3_init_flag": 1,
    "zero3_save_16bit_model": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1,
    "use_fsdp": 0,
    "fsdp_version": 1,
    "fsdp_offload_params": 1,
    "fsdp_min_num_params": 1,
    "fsdp_sharding_strategy": 1,
    "fsdp_reshard_after_forward": 1,
    "fsdp_auto_wrap_policy": 1,
    "fsdp_transformer_layer_cls_to_wrap": 1,
    "fsdp_backward_prefetch": 1,
    "fsdp_state_dict_type": 1,
    "fsdp_forward_prefetch": 1,
    "fsdp_use_orig_params": 1,
    "fsdp_cpu_ram_efficient_loading": 1,
    "fsdp_sync_module_states": 1,
    "fsdp_activation_checkpointing": 1,
    "fsdp_activation_checkpointing_offload": 1,
}
# these reach other machines, or read a file that can say the same as all flags here, another main machine among them
_TRUSTED = ("config_file", "deepspeed_hostfile", "deepspeed_multinode_launcher")
# The launcher takes one of these or --multi_gpu, not both.
_OWN_WAY = ("--use_fsdp", "--use_deepspeed")


def extra_arguments(text: str | None) -> list[str]:
    """Further arguments as typed, checked against the ones that are known and harmless.

    Raises:
        UserError: for an unknown flag, a missing value, or a word that belongs to no flag.
    """
    key = "extra_accelerate_launch_args"
    try:
        words = split_words(text or "")
    except ValueError as error:
        raise UserError("A quotation mark in the further launch arguments is not closed.", key) from error
    checked: list[str] = []
    position = 0
    while position < len(words):
        flag, has_value, value = words[position].partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in _EXTRA:
            raise UserError(
                f"{words[position]!r} is no launch argument that may be added here.",
                key,
                nearest(name, _EXTRA) or f"Possible are {', '.join(sorted(_EXTRA))}.",
            )
        wanted = _EXTRA[name]
        values = [value] if has_value else words[position + 1 : position + 1 + wanted]
        if len(values) != wanted or any(item.startswith("--") for item in values):
            raise UserError(f"--{name} takes {wanted or 'no'} value{'s' if wanted > 1 else ''}.", key)
        checked += [f"--{name}", *values]
        position += 1 if has_value else 1 + wanted
    return checked


def _refuse_trusted(extra: list[str]) -> None:
    """A saved form may come from anybody, so what can name other machines counts only where foreign code does."""
    bad = next((flag for flag in extra if flag.removeprefix("--") in _TRUSTED), None)
    if bad is not None:
        raise UserError(
            f"{bad} can name other machines, which could run programs on this one.",
            "extra_accelerate_launch_args",
            "If it is yours, start with --allow_plugins.",
        )


def arguments(values: Mapping[str, Any], notes: list[str], *, trusting: bool = False) -> list[str]:
    """`python -m accelerate.commands.launch` with its settings, up to the script.

    Args:
        values: all launcher options and mixed_precision, defaults filled in.
        notes: sentences about what was changed are added here.
        trusting: whoever started the page allowed foreign code, and with it any machine as the first one.

    Raises:
        UserError: for GPU numbers that are none, an address that is none or lies outside the local network, or a flag
            that can name other machines without `trusting`.
    """
    extra = extra_arguments(values.get("extra_accelerate_launch_args"))
    if not trusting:
        _refuse_trusted(extra)
    processes = int(values["num_processes"])
    machines = int(values["num_machines"])
    parts = [sys.executable, "-m", "accelerate.commands.launch"]
    if "--config_file" not in extra:
        # without this, a settings file in the home folder could switch on DeepSpeed or FSDP unasked: no flag says "no"
        parts += ["--config_file", str(NEUTRAL_CONFIG)]
    parts += ["--num_processes", str(processes), "--num_machines", str(machines)]
    parts += ["--machine_rank", str(values["machine_rank"])]
    parts += ["--mixed_precision", str(values["mixed_precision"]), "--dynamo_backend", "no"]
    parts += ["--num_cpu_threads_per_process", str(values["num_cpu_threads_per_process"])]
    if values.get("torch_compile"):
        parts += ["--dynamo_mode", str(values["dynamo_mode"])]
        parts += [f"--{name}" for name in ("dynamo_use_fullgraph", "dynamo_use_dynamic") if values.get(name)]
    if any(flag in extra for flag in _OWN_WAY):
        pass  # the launcher starts the processes for these itself
    elif processes > 1:
        parts.append("--multi_gpu")
    elif values.get("multi_gpu"):
        notes.append("Several GPUs are switched on, but the number of processes is 1: one GPU is used.")
    parts += ["--gpu_ids", gpu_ids(values.get("gpu_ids"))]
    if values.get("main_process_ip"):
        parts += ["--main_process_ip", main_address(str(values["main_process_ip"]), trusting)]
    if values.get("main_process_port"):
        parts += ["--main_process_port", str(values["main_process_port"])]
    elif processes > 1 and machines == 1:
        # 0 lets the launcher find a free port, so that two runs at once do not collide
        parts += ["--main_process_port", "0"]
    return parts + extra


def main_address(text: str, trusting: bool) -> str:
    """The address of the machine that leads a training on several.

    Whoever leads sends objects that the others unpack, which is as good as a program. A saved form may come from
    anybody, so an address somewhere in the internet counts only where foreign code is allowed.

    Raises:
        UserError: for what is no address, or one outside the local network without `trusting`.
    """
    key, plain = "main_process_ip", text.strip()
    if not _ADDRESS.fullmatch(plain):
        raise UserError(f"The main machine's address is {text[:100]!r}.", key, "Write an address such as 192.168.1.2.")
    try:
        number = ipaddress.ip_address(plain.strip("[]"))
    except ValueError:
        near = "." not in plain or plain.lower().endswith(_NEAR_NAMES)
    else:
        near = number.is_private or number.is_loopback or number.is_link_local or number in _SHARED
    if not near and not trusting:
        raise UserError(
            f"The main machine {plain} is not in the local network, and it could run programs on this one.",
            key,
            "If it is yours, start with --allow_plugins.",
        )
    return plain


def gpu_ids(text: Any) -> str:
    """GPU numbers as the launcher wants them: "all" or "0,1".

    Raises:
        UserError: for anything else.
    """
    plain = str(text or "all").replace(" ", "").replace(";", ",").strip(",").lower() or "all"
    if plain != "all" and not _GPU_IDS.match(plain):
        raise UserError(
            f"GPU numbers are {text!r}.", "gpu_ids", "Write numbers separated by commas, such as 0,1, or all."
        )
    return plain


def environment(values: Mapping[str, Any], project: Path, on_cpu: bool) -> dict[str, str]:
    """What the trainer's processes need besides the page's environment.

    Args:
        values: all launcher options.
        project: the folder that holds `sd_scripts`.
        on_cpu: this machine has no GPU that PyTorch could use.
    """
    needed = {
        # console and files in UTF-8 whatever the system's language, and lines as they come
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(project),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if os.name == "nt":
        # PyTorch for Windows is built without libuv
        needed["USE_LIBUV"] = "0"
    if int(values["num_processes"]) > 1 and on_cpu:
        # `--cpu --num_processes 2` silently runs one process; this with --multi_gpu runs two
        needed["ACCELERATE_USE_CPU"] = "true"
    return needed
