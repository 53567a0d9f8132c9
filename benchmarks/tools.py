"""How fast the LoRA and model tools are, each beside the plain exact computation of the same thing.

    python benchmarks/tools.py                 full-size Stable Diffusion 1.5 shapes with random weights in fp16: a
                                               quarter of an hour on 2 quiet cores, 11 GB of memory, 14 GB of disk
    python benchmarks/tools.py --tiny          small shapes: checks in two minutes that the benchmark works

- extract: a LoRA of rank 64 from two models. Plain: every difference in float32, `torch.linalg.svd`.
- resize: that rank 64 to 16. Plain: every product up x down in float32, `torch.linalg.svd`.
- merge: a LoRA of rank 64 into the model. Plain: the models of diffusers, changed in float32, then one file.
- convert: a diffusers folder to one file. Plain: the models of diffusers, their weights renamed, then one file.

The plain way is what `tools_reference.py` does. Every run is a fresh process, start-up included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from benchmarks.train import make_model

JOBS = ("extract", "resize", "merge", "convert")
# How many times as fast as the plain way each tool shall be, and how much memory it may take at most.
GOALS = {"extract": 8.0, "resize": 20.0, "merge": 4.0, "convert": 4.0}
GOAL_MEBIBYTES = 3 * 1024
GOAL_ERROR = 1.02
RANKS = (64, 16)
TINY_RANKS = (16, 4)  # layers of the small model have 32 rows
REFERENCE = ROOT / "benchmarks" / "tools_reference.py"
SCRIPTS = ROOT / "sd_scripts"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="which tools")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contestant")
    parser.add_argument("--skip_plain", action="store_true", help="ours only; then no goals of speed are judged")
    parser.add_argument("--exact", action="store_true", help="also our extraction with --exact")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process")
    parser.add_argument("--folder", type=Path, help="keep the inputs here for the next time")
    parser.add_argument("--save", type=Path, help="write all numbers to this JSON file")
    return parser.parse_args()


def ranks_of(options: argparse.Namespace) -> tuple[int, int]:
    """The rank of extraction and of the LoRA, and the one it is resized to."""
    return TINY_RANKS if options.tiny else RANKS


def make_inputs(folder: Path, tiny: bool, ranks: tuple[int, int], env: dict[str, str]) -> None:
    """A model as folder (`model`) and as file, a tuned one, and a LoRA; in processes of their own."""
    model = make_model(folder, tiny, "sd1")
    if (folder / "complete").exists():
        return
    run_fresh(python(str(REFERENCE), "inputs", str(model), str(folder), str(ranks[0])), env)
    (folder / "complete").touch()


def ours(job: str, folder: Path, ranks: tuple[int, int], exact: bool = False) -> list[str]:
    """The command of our tool."""
    half = ["--save_precision", "fp16", "--overwrite"]
    original, tuned, lora = (str(folder / f"{name}.safetensors") for name in ("original", "tuned", "lora"))
    target = str(folder / f"ours_{job}.safetensors")
    match job:
        case "extract":
            models = ["--model_org", original, "--model_tuned", tuned, "--dim", str(ranks[0])]
            more = ["--clamp_quantile", "1", *(["--exact"] if exact else [])]
            return [str(SCRIPTS / "networks/extract_lora_from_models.py"), *models, "--save_to", target, *half, *more]
        case "resize":
            rank = ["--new_rank", str(ranks[1])]
            return [str(SCRIPTS / "networks/resize_lora.py"), "--model", lora, "--save_to", target, *rank, *half]
        case "merge":
            parts = ["--sd_model", original, "--models", lora, "--ratios", "1", "--save_to", target]
            return [str(SCRIPTS / "networks/merge_lora.py"), *parts, *half]
        case _:
            script = SCRIPTS / "tools/convert_diffusers20_original_sd.py"
            return [str(script), "--fp16", "--overwrite", str(folder / "half"), target]


def measure(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Seconds and peak memory in MiB of one fresh process."""
    done = run_fresh(python(*command), env, timeout=3600)
    return {"seconds": done.seconds, "mebibytes": done.peak_bytes / MEBI}


def contestants(options: argparse.Namespace, job: str, folder: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """Name of a run -> what measures it."""
    env = environment(options.threads)
    ranks = ranks_of(options)
    found: dict[str, Callable[[], dict[str, float]]] = {}
    if not options.skip_plain:
        plain = [str(REFERENCE), job, str(folder), *map(str, ranks)]
        found["plain"] = partial(measure, plain, env)
    found["ours"] = partial(measure, ours(job, folder, ranks), env)
    if job == "extract" and options.exact:
        found["ours, exact"] = partial(measure, ours(job, folder, ranks, True), env)
    return found


def error_of(job: str, folder: Path, ranks: tuple[int, int], env: dict[str, str]) -> float:
    """How far our result is from the full change, as a multiple of the least possible; the worst of some layers."""
    done = run_fresh(python(str(REFERENCE), "error", job, str(folder), *map(str, ranks)), env, 3600)
    return float(last_json(done.stdout)["error"])


def table(results: dict[str, dict[str, dict[str, float]]], errors: dict[str, float]) -> str:
    """One row a run: seconds, how many times as fast as plain, memory, error."""
    rows = []
    for job, runs in results.items():
        for name, numbers in runs.items():
            base = runs.get("plain", numbers)["seconds"]
            error = f"{errors[job]:.4f}" if name == "ours" and job in errors else ""
            speed = f"{base / numbers['seconds']:.1f}"
            rows.append([job, name, f"{numbers['seconds']:.1f}", speed, f"{numbers['mebibytes']:.0f}", error])
    header = ["tool", "run", "seconds", "times as fast as plain", "peak memory, MiB", "error / least possible"]
    return markdown(header, rows)


def missed(results: dict[str, dict[str, dict[str, float]]], errors: dict[str, float]) -> list[str]:
    """Sentences on goals that were not reached."""
    lines = []
    for job, runs in results.items():
        mine = runs["ours"]
        if "plain" in runs and runs["plain"]["seconds"] < GOALS[job] * mine["seconds"]:
            lines.append(f"{job}: {runs['plain']['seconds'] / mine['seconds']:.1f} times as fast, goal {GOALS[job]:g}")
        if mine["mebibytes"] > GOAL_MEBIBYTES:
            lines.append(f"{job}: {mine['mebibytes']:.0f} MiB, goal {GOAL_MEBIBYTES}")
        if errors.get(job, 1.0) > GOAL_ERROR:
            lines.append(f"{job}: {errors[job]:.4f} of the least possible error, goal {GOAL_ERROR}")
    return lines


def main() -> int:
    """Measure, print the table, say which goals were missed (exit code 1 for that)."""
    options = arguments()
    env = environment(options.threads)
    results: dict[str, dict[str, dict[str, float]]] = {}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_inputs(folder, options.tiny, ranks_of(options), env)
        for job in options.jobs:
            print(job, flush=True)
            runs = alternate(contestants(options, job, folder), options.rounds)
            results[job] = {name: medians(rows) for name, rows in runs.items()}
            if job in ("extract", "resize"):
                errors[job] = error_of(job, folder, ranks_of(options), env)
            for result in folder.glob(f"*_{job}.safetensors"):
                result.unlink()
    facts = machine(("torch", "safetensors", "diffusers"))
    print(f"\n{facts}. {time.strftime('%Y-%m-%d')}, {options.threads} threads, median of {options.rounds}.\n")
    print(table(results, errors))
    if options.save:
        options.save.write_text(json.dumps({"runs": results, "errors": errors}, indent=1) + "\n", "utf-8")
    if options.tiny:
        print("\nsmall shapes: no goals")
        return 0
    lines = missed(results, errors)
    print("\n".join(["", *(lines or ["goals reached"])]))
    return 1 if lines else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"benchmark failed: {error}")
