"""Add an LCM LoRA to a model: `python sd_scripts/tools/lcm_convert.py --name out.safetensors --model in.safetensors`.

The result makes pictures in 4 to 8 steps with the LCM sampler at a guidance of 1 to 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.headers import VERSION_NAMES
from sd_scripts.schema.tools_models import LcmConvertOptions
from sd_scripts.tools.common import run, say
from sd_scripts.tools.files import refuse_existing
from sd_scripts.tools.models.writing import size_text

if TYPE_CHECKING:
    from sd_scripts.models.modules import ModelFile

PROG = "lcm_convert.py"
OPTIONS = LcmConvertOptions
LORAS = {
    "sd1": "latent-consistency/lcm-lora-sdv1-5",
    "sdxl": "latent-consistency/lcm-lora-sdxl",
    "ssd-1b": "latent-consistency/lcm-lora-ssd-1b",
}
HINT = "Sampler LCM, 4 to 8 steps, guidance 1 to 2."
_FILE = "pytorch_lora_weights.safetensors"
_ENDINGS = (".safetensors", ".ckpt")
# What merging calls its options, and their names here.
_OPTIONS_HERE = {"sd_model": "model", "models": "lcm_lora", "save_to": "name", "save_precision": "lora_scale"}
# In the deepest attention of the whole Stable Diffusion XL; the smaller ones made of it lack it.
_DEEPEST = "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q"


def kind_of(model: ModelFile, options: LcmConvertOptions) -> str:
    """Which LoRA the model wants: "sd1", "sd2", "sdxl" or "ssd-1b". Raises UserError where the flags say otherwise."""
    if options.sdxl and options.ssd_1b:
        raise UserError("sdxl and ssd_1b are both on.", "sdxl", "Give one, or none: the model says what it is.")
    small = model.version == "sdxl" and _DEEPEST not in model.places
    if options.sdxl and model.version != "sdxl":
        raise UserError(f"{model.path} is {VERSION_NAMES[model.version]}, not {VERSION_NAMES['sdxl']}.", "sdxl")
    if options.ssd_1b and not small:
        raise UserError(f"{model.path} is {VERSION_NAMES[model.version]}, not SSD-1B.", "ssd_1b")
    if small and not options.ssd_1b and options.lcm_lora is None:
        raise UserError(
            f"{model.path} is smaller than {VERSION_NAMES['sdxl']}.",
            "ssd_1b",
            "Give --ssd_1b if it is SSD-1B, else name the LoRA made for it with --lcm_lora.",
        )
    return "ssd-1b" if small else model.version


def lora_file(options: LcmConvertOptions, kind: str) -> Path:
    """The LCM LoRA: the file or folder given, or the hub's for this kind of model, out of the cache where it is.

    Raises:
        UserError: there is none, or it cannot be fetched.
    """
    from sd_scripts.models.folder import hub_errors, is_hub_id

    name = options.lcm_lora or LORAS.get(kind, "")
    if not name:
        raise UserError(
            f"There is no LCM LoRA for {VERSION_NAMES[kind]} to fetch.", "lcm_lora", "Give one with --lcm_lora."
        )
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or not is_hub_id(name):
        return path

    from huggingface_hub import hf_hub_download

    with hub_errors(name, "lcm_lora"):
        return Path(hf_hub_download(name, _FILE))


def _in_folder(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    found = [path for path in files if path.name == _FILE] or files
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} .safetensors files.", "lcm_lora", "Give the LoRA file itself.")
    return found[0]


def work(options: LcmConvertOptions) -> None:
    """Add the LoRA and write the model, complete or not at all. Raises UserError."""
    target = Path(options.name)
    if target.suffix not in _ENDINGS:
        target = target.with_name(f"{target.name}.safetensors")
    refuse_existing([target], options.overwrite)

    from sd_scripts.models.modules import open_model

    with open_model(options.model, "model") as model:
        kind = kind_of(model, options)
    path = lora_file(options, kind)
    say(f"{options.lora_scale:g} of {path}")
    try:
        _merge(Path(options.model), path, options.lora_scale, target)
    except UserError as error:
        raise UserError(error.message, _OPTIONS_HERE.get(error.key or "", error.key), error.hint) from error
    say(f"{target} is written ({size_text(target)}). {HINT}")


def _merge(model: Path, lora: Path, scale: float, target: Path) -> None:
    import torch

    from sd_scripts.networks.netfile import open_network
    from sd_scripts.tools.lora.merge import Source
    from sd_scripts.tools.lora.merge_model import Settings, merge_into_model

    network = open_network(lora, "lcm_lora")
    settings = Settings(torch.float32, None, torch.device("cpu"), hint=HINT, overwrite=True)
    try:
        merge_into_model(model, [Source(network, scale)], target, settings)
    finally:
        network.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
