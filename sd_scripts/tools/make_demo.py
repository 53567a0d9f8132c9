"""Make the demo project: a small base model, ten pictures with captions, sample prompts, and a filled-in form.

    python -m sd_scripts.tools.make_demo --out demo

Everything is drawn and computed here; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sd_scripts.tools.demo_pictures import SUBJECT, write_pictures

REPEATS = 6
TRAIN_STEPS = 60
SAMPLE_EVERY = 20
PROMPTS = (
    f"a {SUBJECT} on a sunny day, blue sky --w 128 --h 128 --d 1 --s 8 --l 3",
    f"a {SUBJECT} at night, stars --w 128 --h 128 --d 2 --s 8 --l 3",
)


def settings(folder: Path) -> dict[str, Any]:
    """The LoRA tab's values for the demo in `folder`; its paths are absolute."""
    return {
        "format": "kohya-gui",
        "version": 1,
        "tab": "lora",
        "description": "Demo: a small model learns a lighthouse in about a minute.",
        "pretrained_model_name_or_path": str(folder / "model"),
        "train_data_dir": str(folder / "pictures"),
        "output_dir": str(folder / "output"),
        "output_name": "demo_lighthouse",
        "resolution": "128,128",
        "enable_bucket": True,
        "min_bucket_reso": 64,
        "max_bucket_reso": 256,
        "bucket_reso_steps": 64,
        "caption_extension": ".txt",
        "cache_latents": True,
        "train_batch_size": 2,
        "max_train_steps": TRAIN_STEPS,
        "learning_rate": 0.006,
        "unet_lr": 0.006,
        "text_encoder_lr": [0.001],
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 4,
        "optimizer_type": "AdamW",
        "network_module": "networks.lora",
        "network_dim": 16,
        "network_alpha": 16.0,
        "mixed_precision": "no",
        "save_precision": "fp16",
        "save_model_as": "safetensors",
        "seed": 42,
        "max_data_loader_n_workers": 0,
        "sample_every_n_steps": SAMPLE_EVERY,
        "sample_at_first": True,
        "sample_sampler": "euler",
        "sample_prompts": str(folder / "prompts.txt"),
    }


def make_demo(folder: Path, say: Callable[[str], None] = print) -> Path:
    """Make the demo project in `folder` (an older one there is replaced, except its output) and return demo.json.

    The settings file is written last, so that a demo with it is a whole one.
    """
    # Kept out of the module's imports, so that --help answers at once.
    from sd_scripts.models.saving import save_diffusers_folder
    from sd_scripts.tools.demo_model import build_demo_model

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "demo.json"
    target.unlink(missing_ok=True)
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    pictures = write_pictures(folder / "pictures" / f"{REPEATS}_{SUBJECT}")
    say(f"{len(pictures)} pictures with captions in {pictures[0].parent}")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    save_diffusers_folder(build_demo_model(), folder / "model")
    say(f"base model in {folder / 'model'}")
    aside = target.with_suffix(".part")
    aside.write_text(json.dumps(settings(folder), indent=2) + "\n", encoding="utf-8")
    aside.replace(target)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make_demo", description="Make the demo project in a folder.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the demo project")
    options = parser.parse_args(argv)
    start = time.monotonic()
    done = make_demo(options.out, lambda text: print(text, flush=True))
    print(f"{done} made in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
