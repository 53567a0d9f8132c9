"""The plain, exact way to do what the tools do, in the straightest code; and the inputs of the benchmark.

    python benchmarks/tools_reference.py inputs MODEL_FOLDER FOLDER RANK
    python benchmarks/tools_reference.py extract|resize|merge|convert FOLDER RANK SMALLER_RANK
    python benchmarks/tools_reference.py error extract|resize FOLDER RANK SMALLER_RANK

The four jobs use torch, safetensors and diffusers only; the rest may use the project's names of layers.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What a LoRA trains, by the names of a single file: linear layers and 1x1 convolutions of the transformers.
_LAYER = re.compile(
    r"model\.diffusion_model\..*\.1\.(proj_in|proj_out|transformer_blocks\..*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2))"
    r"|cond_stage_model\.transformer\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
)
_SAMPLED = 8


def layers_of(weights: dict[str, Any]) -> list[str]:
    """Keys of the weights that a LoRA changes."""
    return [key for key in weights if key.endswith(".weight") and _LAYER.fullmatch(key.removesuffix(".weight"))]


def factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `rank` columns and rows by a whole SVD."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


def extract(folder: Path, rank: int, smaller: int) -> None:
    """Every difference of two models, decomposed."""
    original, tuned = (load_file(str(folder / f"{name}.safetensors")) for name in ("original", "tuned"))
    found: dict[str, torch.Tensor] = {}
    for key in layers_of(original):
        difference = (tuned[key].float() - original[key].float()).flatten(1)
        up, down = factors(difference, rank)
        found |= {f"{key}.up": up.half().contiguous(), f"{key}.down": down.half().contiguous()}
    save_file(found, str(folder / "plain_extract.safetensors"))


def resize(folder: Path, rank: int, smaller: int) -> None:
    """Every product of a LoRA, decomposed again."""
    lora = load_file(str(folder / "lora.safetensors"))
    found: dict[str, torch.Tensor] = {}
    for key in [key for key in lora if key.endswith(".lora_up.weight")]:
        name = key.removesuffix(".lora_up.weight")
        product = lora[key].float().flatten(1) @ lora[f"{name}.lora_down.weight"].float().flatten(1)
        up, down = factors(product, smaller)
        found |= {f"{name}.up": up.half().contiguous(), f"{name}.down": down.half().contiguous()}
    save_file(found, str(folder / "plain_resize.safetensors"))


def pipeline_parts(folder: Path) -> dict[str, Any]:
    """U-Net, VAE and text encoder of a diffusers folder as models."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    return {
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        "vae": AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
    }


def merge(folder: Path, rank: int, smaller: int) -> None:
    """Models built, every layer changed in float32, everything written."""
    from sd_scripts.models.modules import open_model

    parts = pipeline_parts(folder / "half")
    lora = load_file(str(folder / "lora.safetensors"))
    places = open_model(folder / "half", "model").places
    named = {
        name: {key.removeprefix("text_model."): value for key, value in part.named_parameters()}
        for name, part in parts.items()
    }
    with torch.no_grad():
        for key in [key for key in lora if key.endswith(".lora_up.weight")]:
            name = key.removesuffix(".lora_up.weight")
            part, _, inner = places[name].weight.partition("/")
            weight = named[part][inner.removeprefix("text_model.")]
            up, down = lora[key].float(), lora[f"{name}.lora_down.weight"].float()
            change = up.flatten(1) @ down.flatten(1) * (float(lora[f"{name}.alpha"]) / rank)
            weight += change.view(weight.shape)
    write_parts(parts, folder / "plain_merge.safetensors")


def convert(folder: Path, rank: int, smaller: int) -> None:
    """Models built, every weight written under its other name."""
    write_parts(pipeline_parts(folder / "half"), folder / "plain_convert.safetensors")


def write_parts(parts: dict[str, Any], target: Path) -> None:
    """All weights in one file, by the names of the original layout."""
    from sd_scripts.models import convert as names
    from sd_scripts.models import keymap
    from sd_scripts.schema.unetnames import UNET_SHAPES

    unet = names.unet_to_original(parts["unet"].state_dict(), UNET_SHAPES["sd1"])
    found = {keymap.UNET_PREFIX + key: value for key, value in unet.items()}
    vae = names.vae_to_original(parts["vae"].state_dict())
    found |= {keymap.VAE_PREFIX + key: value for key, value in vae.items()}
    text = names.text_to_clip(parts["text_encoder"].state_dict())
    found |= {keymap.TEXT_PREFIXES["sd1"][0] + key: value for key, value in text.items()}
    save_file({key: value.half().contiguous() for key, value in found.items()}, str(target))


def inputs(model: Path, folder: Path, rank: int) -> None:
    """From a folder in 32 bits: `half` (the same in 16), `original`, `tuned` and `lora` as files."""
    from sd_scripts.models.loading import load_sd
    from sd_scripts.models.modules import open_model
    from sd_scripts.models.saving import save_diffusers_folder, save_single_file
    from sd_scripts.schema.model import ModelOptions

    loaded = load_sd(ModelOptions(pretrained_model_name_or_path=str(model)), None)
    save_diffusers_folder(loaded, folder / "half", torch.float16)
    save_single_file(loaded, folder / "original.safetensors", torch.float16)
    del loaded
    random = torch.Generator().manual_seed(0)
    weights = load_file(str(folder / "original.safetensors"))
    for key in layers_of(weights):
        weights[key] = tuned(weights[key], random)
    save_file(weights, str(folder / "tuned.safetensors"))
    found: dict[str, torch.Tensor] = {}
    opened = open_model(folder / "original.safetensors", "model")
    for name in opened.targets(False):
        shape = opened.places[name].shape
        down = torch.randn(rank, *shape[1:], generator=random) / 50
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=random) / 50
        found |= {f"{name}.lora_down.weight": down.half(), f"{name}.lora_up.weight": up.half()}
        found[f"{name}.alpha"] = torch.tensor(float(rank) / 2, dtype=torch.float16)
    save_file(found, str(folder / "lora.safetensors"))


def tuned(weight: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The weight after a training: a change whose singular values fall off, and noise over all of them."""
    matrix = weight.float().flatten(1)
    size = float(matrix.std()) * 0.2
    few = min(128, *matrix.shape)
    up = torch.randn(matrix.shape[0], few, generator=random) * torch.arange(1, few + 1).float().rsqrt()
    down = torch.randn(few, matrix.shape[1], generator=random)
    noise = torch.randn(matrix.shape, generator=random)
    return (matrix + size * (up @ down / few**0.5 + 0.3 * noise)).view(weight.shape).half()


def error(job: str, folder: Path, rank: int, smaller: int) -> float:
    """The greatest error of our result over some layers, as a multiple of the least that its rank allows."""
    from sd_scripts.models.modules import open_model

    mine = load_file(str(folder / f"ours_{job}.safetensors"))
    source = load_file(str(folder / "lora.safetensors")) if job == "resize" else {}
    original, changed = (open_model(folder / f"{name}.safetensors", "model") for name in ("original", "tuned"))
    names = sorted({key.partition(".")[0] for key in mine})
    worst = 0.0
    for name in names[:: max(1, len(names) // _SAMPLED)]:
        if job == "resize":
            whole = product_of(source, name)
        else:
            whole = (changed.weight(name).double() - original.weight(name).double()).flatten(1)
        values = torch.linalg.svdvals(whole)
        least = float(values[rank if job == "extract" else smaller :].square().sum().sqrt())
        worst = max(worst, float(torch.linalg.norm(whole - product_of(mine, name))) / least)
    return worst


def product_of(lora: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """alpha / rank x up x down of one layer in float64, as a matrix."""
    up, down = (lora[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    return up @ down * (float(lora[f"{name}.alpha"]) / down.shape[0])


def main() -> None:
    """Do what the arguments say."""
    job, *rest = sys.argv[1:]
    if job == "inputs":
        inputs(Path(rest[0]), Path(rest[1]), int(rest[2]))
    elif job == "error":
        print(json.dumps({"error": error(rest[0], Path(rest[1]), int(rest[2]), int(rest[3]))}))
    else:
        {"extract": extract, "resize": resize, "merge": merge, "convert": convert}[job](
            Path(rest[0]), int(rest[1]), int(rest[2])
        )


if __name__ == "__main__":
    main()
