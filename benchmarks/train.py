"""Speed and memory of training, as ratios to a plain diffusers + peft loop run beside it.

    python benchmarks/train.py               LoRA, full-size Stable Diffusion 1.5 shapes, random weights: minutes, 8 GB
    python benchmarks/train.py --task full   the whole U-Net of the same shapes: 20 GB
    python benchmarks/train.py --task sdxl   LoRA on full-size SDXL shapes: 16 GB
    python benchmarks/train.py --tiny        small shapes: checks in a minute that the benchmark itself works

Every run is a fresh process and the contestants alternate. The trainer is started as people start it, by
`accelerate launch`, and read through its events; its time to the first step includes the launcher.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    MEBI,
    ROOT,
    BenchmarkError,
    alternate,
    environment,
    last_json,
    machine,
    markdown,
    medians,
    python,
    run_fresh,
)

RANK = 8
STEP_GOAL, MEMORY_GOAL = 0.95, 1.0
CONTESTANTS = ("plain", "ours", "channels_last")
TASKS = ("lora", "full", "sdxl")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")
FIGURES = {
    "first_step": "time to first step, s",
    "step": "step, s",
    "cache_image": "caching a picture's latents, s",
    "peak": "peak memory, MiB",
    "whole": "whole run, s",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, one round: a check, not a measurement")
    parser.add_argument("--task", choices=TASKS, default="lora", help="what is trained: see above")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contestant")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps a run")
    parser.add_argument("--pictures", type=int, default=6, help="pictures to cache and train on")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], help="all for a LoRA on SD, else bf16")
    parser.add_argument("--text_encoder", action="store_true", help="train the text encoder too")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--folder", type=Path, help="keep model and pictures here for the next time")
    parser.add_argument("--save", type=Path, help="write every run's numbers to this JSON file")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further options for the trainer")
    return parser.parse_args()


def make_model(folder: Path, tiny: bool, version: str) -> Path:
    """A diffusers folder with random weights: full-size shapes of "sd1" or "sdxl" in half precision, or small ones."""
    target = folder / (f"tiny {version}" if tiny else {"sd1": "sd15"}.get(version, version))
    if (target / "model_index.json").exists():
        return target
    import torch

    from sd_scripts.models.assets import model_config
    from sd_scripts.models.build import LoadedModel, make_text_encoders, make_unet, make_vae
    from sd_scripts.models.saving import save_diffusers_folder
    from sd_scripts.models.tiny import save_tiny
    from sd_scripts.models.tokenizer import build_tokenizers

    if tiny:
        return save_tiny(target, version)
    config = model_config(version)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)  # 3.5 milliard numbers in 32 bits would take 14 GB
    model = LoadedModel(
        unet=make_unet(config["unet"]),
        text_encoders=make_text_encoders(config),
        vae=make_vae(config["vae"]),
        tokenizers=build_tokenizers(version),
        version=version,
        prediction_type="epsilon",
        source="random",
    )
    return save_diffusers_folder(model, target)


def make_pictures(folder: Path, count: int, size: int) -> Path:
    """A folder for training, `<root>/1_thing`, with smooth random pictures of `size` pixels and captions."""
    import numpy as np
    from PIL import Image

    root = folder / f"pictures-{size}-{count}"
    pictures = root / "1_thing"
    pictures.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(pictures / f"{number:02d}.png")
        (pictures / f"{number:02d}.txt").write_text(f"a photo of a thing, number {number}, soft light", "utf-8")
    return root


def measure_reference(options: argparse.Namespace, precision: str, *extra: str) -> dict[str, float]:
    """One run of the plain loop."""
    argv = python(
        str(ROOT / "benchmarks" / "reference.py"),
        *("--model", str(options.model), "--pictures", str(options.data / "1_thing")),
        *("--steps", str(options.steps), "--rank", str(RANK), "--precision", precision),
        *("--task", options.task),
        *(["--text_encoder"] if options.text_encoder else []),
        *extra,
    )
    done = run_fresh(argv, environment(options.threads))
    told = last_json(done.stdout)
    return figures(done.started, told["clocks"], told["cache_seconds"] / told["images"], done.peak_bytes, done.seconds)


def trained(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The script of the task, and the options that only it has."""
    if options.task == "full":
        return "train_db.py", [] if options.text_encoder else ["--stop_text_encoder_training", "-1"]
    network = ["--network_module", "networks.lora", "--network_dim", str(RANK), "--network_alpha", str(RANK)]
    network += [] if options.text_encoder else ["--network_train_unet_only"]
    if options.task == "sdxl":
        return "sdxl_train_network.py", [*network, "--bucket_reso_steps", "32", "--no_half_vae"]
    return "train_network.py", network


def trainer_command(options: argparse.Namespace, precision: str, output: Path) -> list[str]:
    """The trainer's command line, as the page would send it."""
    mixed = "bf16" if precision == "bf16" else "no"
    script, special = trained(options)
    return python(
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", mixed, "--dynamo_backend", "no"),
        *("--num_cpu_threads_per_process", str(options.threads)),
        str(ROOT / "sd_scripts" / script),
        *("--pretrained_model_name_or_path", str(options.model), "--train_data_dir", str(options.data)),
        *("--resolution", f"{options.size},{options.size}", "--caption_extension", ".txt", "--cache_latents"),
        *special,
        *("--train_batch_size", "1", "--max_train_steps", str(options.steps), "--learning_rate", "1e-4"),
        *("--optimizer_type", "AdamW", "--lr_scheduler", "constant", "--seed", "1", "--mixed_precision", mixed),
        *("--max_data_loader_n_workers", "0", "--save_model_as", "safetensors"),
        *("--output_dir", str(output), "--output_name", "bench", "--job_dir", str(output / "job")),
        *options.extra,
    )


def measure_trainer(options: argparse.Namespace, precision: str) -> dict[str, float]:
    """One run of our trainer."""
    from sd_scripts.events import read_events

    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        output = Path(scratch)
        done = run_fresh(trainer_command(options, precision, output), environment(options.threads))
        events, _ = read_events(output / "job" / "events.jsonl")
        saved = list(output.glob("*.safetensors"))
    clocks = [event["t"] for event in events if event["kind"] == "step"]
    if len(clocks) != options.steps or not saved:
        raise BenchmarkError(f"{len(clocks)} of {options.steps} steps and {len(saved)} files:\n{done.stdout[-2000:]}")
    return figures(done.started, clocks, cache_seconds(events) / options.pictures, done.peak_bytes, done.seconds)


def cache_seconds(events: list[dict[str, Any]]) -> float:
    """From the first word about caching to the first event that is about something else."""
    first = next((i for i, e in enumerate(events) if e["kind"] == "phase" and e["name"] == "cache latents"), None)
    if first is None:
        raise BenchmarkError("the trainer told nothing about caching latents")
    after = next(e["t"] for e in events[first:] if not (e["kind"] == "phase" and e["name"] == "cache latents"))
    return float(after - events[first]["t"])


def figures(started: float, clocks: list[float], cache_image: float, peak: int, whole: float) -> dict[str, float]:
    """The numbers of a run. The first step is left out of the time of a step: it warms up memory and kernels."""
    steps = [later - earlier for earlier, later in zip(clocks, clocks[1:], strict=False)]
    return {
        "first_step": clocks[0] - started,
        "step": statistics.median(steps),
        "cache_image": cache_image,
        "peak": peak / MEBI,
        "whole": whole,
    }


def contestants(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, float]]]:
    """ "<contestant> <precision>" -> measurement. "channels_last" is the plain loop with that memory layout."""
    ways: dict[str, Callable[[str], dict[str, float]]] = {
        "plain": lambda precision: measure_reference(options, precision),
        "ours": lambda precision: measure_trainer(options, precision),
        "channels_last": lambda precision: measure_reference(options, precision, "--channels_last"),
    }
    return {
        f"{name} {precision}": partial(ways[name], precision)
        for precision in options.precision
        for name in CONTESTANTS
        if name in options.contestants
    }


def report(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> str:
    """Medians and ratios as Markdown."""
    middle = {name: medians(runs) for name, runs in results.items()}

    def cell(name: str, key: str) -> str:
        value, plain = middle[name][key], middle.get(f"plain {name.split()[1]}")
        return f"{value:.2f}" if plain is None else f"{value:.2f} ({value / plain[key]:.2f})"

    parts = "U-Net and text encoder" if options.text_encoder else "U-Net"
    shapes = "Tiny" if options.tiny else "SDXL" if options.task == "sdxl" else "SD 1.5"
    what = f"the whole {parts}" if options.task == "full" else f"rank {RANK} on the {parts}"
    return "\n".join(
        [
            f"{machine(PACKAGES)}. {time.strftime('%Y-%m-%d')}, {options.threads} threads.",
            f"{shapes} shapes, {options.size} pixels, batch 1, {what}, {options.pictures} pictures, "
            f"{options.steps} steps, median of {options.rounds}; in brackets the ratio to the plain loop.",
            "",
            markdown(["run", *FIGURES.values()], [[name, *(cell(name, key) for key in FIGURES)] for name in middle]),
        ]
    )


def verdict(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> list[str]:
    """The goals that were missed."""
    missed = []
    for precision in options.precision:
        plain, ours = (medians(results[f"{who} {precision}"]) for who in ("plain", "ours"))
        for key, goal in (("step", STEP_GOAL), ("peak", MEMORY_GOAL)):
            if ours[key] / plain[key] > goal:
                missed.append(f"{precision} {key}: {ours[key] / plain[key]:.2f} of the plain loop (goal {goal})")
    return missed


def main() -> int:
    """Measure, print the table, say which goals were missed (exit code 1 for that; a tiny run has no goals)."""
    options = arguments()
    if options.tiny:
        options.rounds, options.pictures, options.steps = 1, min(options.pictures, 3), min(options.steps, 4)
    options.size = 64 if options.tiny else 256
    options.precision = options.precision or (["fp32", "bf16"] if options.task == "lora" else ["bf16"])
    version = "sdxl" if options.task == "sdxl" else "sd1"
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = (options.folder or Path(scratch)).resolve()
        options.folder.mkdir(parents=True, exist_ok=True)
        # In a process of its own, so that this one does not sit on gigabytes while the others run.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as maker:
            options.model = maker.submit(make_model, options.folder, options.tiny, version).result()
            options.data = maker.submit(make_pictures, options.folder, options.pictures, options.size).result()
        if os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
            print(f"warning: the machine is busy (load {os.getloadavg()[0]:.1f}); ratios hold better than times")
        results = alternate(contestants(options), options.rounds)
    print("\n" + report(options, results))
    if options.save:
        options.save.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if options.tiny or not {"plain", "ours"} <= set(options.contestants):
        return 0
    missed = verdict(options, results)
    print("\n".join(missed) or "goals reached")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"benchmark failed: {error}")
