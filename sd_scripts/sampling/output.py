"""When sample pictures are made, what their files are called, and how they are written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_scripts.sampling.prompts import SamplePrompt


class Triggers(Protocol):
    """The options that say when to sample; an option section has them."""

    @property
    def sample_every_n_steps(self) -> int | None: ...
    @property
    def sample_every_n_epochs(self) -> int | None: ...
    @property
    def sample_at_first(self) -> bool: ...


def should_sample(step: int, epoch: int | None, options: Triggers, first: bool = False) -> bool:
    """Whether sample pictures are due after `step` optimizer steps.

    `epoch` is the number of finished epochs at the end of an epoch and None inside one; `first` marks the call before
    the first step of this run (step 0 is one too). An interval in epochs overrides one in steps; an interval below 1
    counts as unset.
    """
    if first or step == 0:
        return bool(options.sample_at_first)
    epochs, steps = options.sample_every_n_epochs or 0, options.sample_every_n_steps or 0
    if epochs > 0:
        return epoch is not None and epoch % epochs == 0
    return steps > 0 and epoch is None and step % steps == 0


def sample_name(
    output_name: str | None, prompt: SamplePrompt, step: int, epoch: int | None = None, when: float | None = None
) -> str:
    """The file name: `[<output_name>_]<e epoch or step>_<prompt index>_<local time>[_<seed>].png`.

    `epoch` is given at the end of an epoch, `when` in seconds since 1970 (default now). The seed is part of the name
    only where the prompt fixes it.
    """
    stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(when))
    parts = [output_name] if output_name else []
    parts += [f"{step:06d}" if epoch is None else f"e{epoch:06d}", f"{prompt.index:02d}", stamp]
    parts += [] if prompt.seed is None else [str(prompt.seed)]
    return "_".join(parts) + ".png"


def sample_folder(output_dir: Path | str) -> Path:
    """Where the pictures of a run go: `<output_dir>/sample`."""
    return Path(output_dir) / "sample"


def parameters_text(prompt: SamplePrompt, *, seed: str | int | None = None, sampler: str | None = None) -> str:
    """The prompt and its settings as one text, in the layout that web UIs read back from PNG files."""
    seed = prompt.seed if seed is None else seed
    facts = {
        "Steps": prompt.steps,
        "Sampler": sampler or prompt.sampler,
        "CFG scale": f"{prompt.scale:g}",
        "Seed": seed,
        "Size": f"{prompt.width}x{prompt.height}",
    }
    lines = [prompt.prompt]
    if prompt.negative:
        lines.append(f"Negative prompt: {prompt.negative}")
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None))
    return "\n".join(lines)


def save_png(image: Image.Image, path: Path | str, prompt: SamplePrompt) -> Path:
    """Write the picture with its prompt in a text field "parameters"; the file appears complete or not at all.

    Seed and sampler are taken from `image.info`, where `render` puts what it used, else from the prompt.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_text(
        "parameters",
        parameters_text(prompt, seed=image.info.get("seed"), sampler=image.info.get("sampler")),
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            image.save(file, format="PNG", pnginfo=info)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
