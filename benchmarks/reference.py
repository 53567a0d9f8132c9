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
LATENT_SCALES = {"lora": 0.18215, "full": 0.18215, "sdxl": 0.13025}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="diffusers folder")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with .png files and .txt captions")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--task", choices=list(LATENT_SCALES), default="lora")
    parser.add_argument("--text_encoder", action="store_true", help="train the text encoder too")
    parser.add_argument("--channels_last", action="store_true")
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[Any, list[Any], list[Any], Any, Any]:
    """U-Net, text encoders, tokenizers, VAE and noise schedule, frozen, in the type that the run computes in."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    place = str(options.model)
    # Weights that are trained themselves stay in 32 bits.
    unet_dtype = torch.float32 if options.task == "full" else dtype
    unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet", torch_dtype=unet_dtype)
    encoders: list[Any] = [CLIPTextModel.from_pretrained(place, subfolder="text_encoder", dtype=dtype)]
    tokenizers = [CLIPTokenizer.from_pretrained(place, subfolder="tokenizer")]
    if options.task == "sdxl":
        second = CLIPTextModelWithProjection.from_pretrained(place, subfolder="text_encoder_2", dtype=dtype)
        encoders.append(second)
        tokenizers.append(CLIPTokenizer.from_pretrained(place, subfolder="tokenizer_2"))
    vae = AutoencoderKL.from_pretrained(place, subfolder="vae", torch_dtype=torch.float32)
    schedule = DDPMScheduler.from_pretrained(place, subfolder="scheduler")
    for module in (unet, *encoders, vae):
        module.requires_grad_(False)
    if options.channels_last:
        unet.to(memory_format=torch.channels_last)
    return unet, encoders, tokenizers, vae, schedule


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
            latents = vae.encode(pixels).latent_dist.sample() * LATENT_SCALES[options.task]
            entries.append((latents, file.with_suffix(".txt").read_text("utf-8").strip()))
    return entries


def make_trainable(options: argparse.Namespace, unet: Any, encoders: list[Any]) -> list[Any]:
    """Free the U-Net, or insert adapters; return what trains, as 32-bit weights."""
    modules = [unet, *(encoders if options.text_encoder else [])]
    if options.task == "full":
        for module in modules:
            module.requires_grad_(True)
        return [parameter for module in modules for parameter in module.parameters()]
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    def lora(layers: list[str]) -> LoraConfig:
        return LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=layers)

    unet.add_adapter(lora(UNET_LAYERS))
    for encoder in modules[1:]:
        encoder.add_adapter(lora(TEXT_LAYERS))
    cast_training_params(modules)
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def encode(options: argparse.Namespace, encoders: list[Any], tokenizers: list[Any], caption: str) -> tuple[Any, Any]:
    """Hidden states, and for SDXL what else its U-Net is told (pooled text, sizes)."""
    import torch

    def ids(tokenizer: Any) -> Any:
        return tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids

    if options.task != "sdxl":
        return encoders[0](ids(tokenizers[0])).last_hidden_state, None
    first, second = (
        encoder(ids(tokenizer), output_hidden_states=True)
        for encoder, tokenizer in zip(encoders, tokenizers, strict=True)
    )
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    sizes = torch.tensor([[256.0, 256.0, 0.0, 0.0, 256.0, 256.0]])
    return hidden, {"text_embeds": second.text_embeds, "time_ids": sizes}


def train(
    options: argparse.Namespace, parts: tuple[Any, ...], entries: list[tuple[Any, str]], parameters: list[Any]
) -> list[float]:
    """The loop; returns the wall clock after every step."""
    import torch

    unet, encoders, tokenizers, _vae, schedule = parts
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    unet.train()
    clocks = []
    for step in range(options.steps):
        latents, caption = entries[step % len(entries)]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (1,))
        noisy = schedule.add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            with torch.set_grad_enabled(options.text_encoder):
                hidden, added = encode(options, encoders, tokenizers, caption)
            predicted = unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample
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
    parameters = make_trainable(options, parts[0], parts[1])
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
