"""The plain loop that the trainer is measured against: diffusers and peft, nothing else, in the straightest way.

Prints one JSON line: seconds for caching the latents, number of pictures and trained weights, and the wall clock after
every step. It imports nothing of this project.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
LATENT_SCALE = 0.18215


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="diffusers folder")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with .png files and .txt captions")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--text_encoder", action="store_true", help="train the text encoder too")
    parser.add_argument("--channels_last", action="store_true")
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[Any, Any, Any, Any, Any]:
    """U-Net, text encoder, tokenizer, VAE and noise schedule, frozen, in the type that the run computes in."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet", torch_dtype=dtype)
    text_encoder = CLIPTextModel.from_pretrained(options.model, subfolder="text_encoder", dtype=dtype)
    vae = AutoencoderKL.from_pretrained(options.model, subfolder="vae", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(options.model, subfolder="tokenizer")
    schedule = DDPMScheduler.from_pretrained(options.model, subfolder="scheduler")
    for module in (unet, text_encoder, vae):
        module.requires_grad_(False)
    if options.channels_last:
        unet.to(memory_format=torch.channels_last)
    return unet, text_encoder, tokenizer, vae, schedule


def cache(options: argparse.Namespace, vae: Any) -> list[tuple[Any, str]]:
    """Every picture's scaled latents and caption."""
    import numpy as np
    import torch
    from PIL import Image

    entries = []
    with torch.no_grad():
        for file in sorted(options.pictures.glob("*.png")):
            levels = torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy())
            pixels = levels.permute(2, 0, 1)[None].float() / 127.5 - 1
            latents = vae.encode(pixels).latent_dist.sample() * LATENT_SCALE
            entries.append((latents, file.with_suffix(".txt").read_text("utf-8").strip()))
    return entries


def add_lora(options: argparse.Namespace, unet: Any, text_encoder: Any) -> list[Any]:
    """Insert adapters and return what trains, as 32-bit weights."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    def lora(layers: list[str]) -> LoraConfig:
        return LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=layers)

    unet.add_adapter(lora(UNET_LAYERS))
    modules = [unet]
    if options.text_encoder:
        text_encoder.add_adapter(lora(TEXT_LAYERS))
        modules.append(text_encoder)
    cast_training_params(modules)
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def train(
    options: argparse.Namespace, parts: tuple[Any, ...], entries: list[tuple[Any, str]], parameters: list[Any]
) -> list[float]:
    """The loop; returns the wall clock after every step."""
    import torch

    unet, text_encoder, tokenizer, _vae, schedule = parts
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    unet.train()
    clocks = []
    for step in range(options.steps):
        latents, caption = entries[step % len(entries)]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (1,))
        noisy = schedule.add_noise(latents, noise, timesteps)
        ids = tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            with torch.set_grad_enabled(options.text_encoder):
                hidden = text_encoder(ids).last_hidden_state
            predicted = unet(noisy, timesteps, hidden).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clocks.append(time.time())
    return clocks


def main() -> None:
    """Run and print the numbers."""
    options = arguments()
    parts = load(options)
    began = time.time()
    entries = cache(options, parts[3])
    cached = time.time()
    parameters = add_lora(options, parts[0], parts[1])
    count = sum(parameter.numel() for parameter in parameters)
    clocks = train(options, parts, entries, parameters)
    print(
        json.dumps(
            {
                "cache_seconds": cached - began,
                "images": len(entries),
                "parameters": count,
                "clocks": clocks,
            }
        )
    )


if __name__ == "__main__":
    main()
