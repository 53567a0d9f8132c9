"""Sample pictures during training. A failing sample warns; training goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from PIL.Image import Image
from torch import nn

from sd_scripts.families.base import Family, Model
from sd_scripts.methods.base import Method
from sd_scripts.sampling.output import sample_folder, sample_name, save_png, should_sample
from sd_scripts.sampling.prompts import SamplePrompt, parse_prompts
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.sampling import SamplingOptions
from sd_scripts.trainer.endings import TerminatedError
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.trainer.spread import callable_weights, in_step


@dataclass(frozen=True)
class _Made:
    """The picture of prompt `number`, or why there is none, and which process made it."""

    number: int
    image: Image | None
    process: int
    problem: str = ""


@dataclass
class SampleMaker:
    """Makes the pictures of all prompts with the weights as they are."""

    accelerator: Accelerator
    family: Family
    method: Method
    model: Model
    model_options: ModelOptions
    options: SamplingOptions
    output_dir: Path
    output_name: str | None
    device: torch.device
    dtype: torch.dtype
    predictor: nn.Module
    keep_vae: bool
    reporter: Reporter

    def prompts(self) -> list[SamplePrompt]:
        """The prompt file, read anew each time, so that it may be edited while training runs."""
        return parse_prompts(Path(self.options.sample_prompts)) if self.options.sample_prompts else []

    def remarks(self) -> list[str]:
        """What of the prompt file is not understood or not taken as written, one sentence each."""
        return [note for prompt in self.prompts() for note in prompt.notes]

    def due(self, step: int, epoch: int | None = None, first: bool = False) -> bool:
        """Whether pictures are due; `epoch` is the number of finished epochs, at an epoch's end only."""
        return bool(self.options.sample_prompts) and should_sample(step, epoch, self.options, first)

    def make(self, step: int, epoch: int | None = None) -> int:
        """Make one picture a prompt, every process its share; the first process writes them all.

        Called in every process. Returns how many were written here. Never raises for a picture that fails.
        """
        prompts = self._agreed_prompts(step)
        if not prompts:
            return 0
        vae_device = next(self.model.vae.parameters()).device
        self.model.vae.to(self.device)
        with callable_weights(self.accelerator, self.predictor):
            written = self._make(prompts, step, epoch)
        if not self.keep_vae:
            self.model.vae.to(vae_device)
        self.reporter.phase("train")
        return written

    def _make(self, prompts: list[SamplePrompt], step: int, epoch: int | None) -> int:
        written = 0
        others: list[_Made] = []
        for number, prompt in enumerate(prompts):
            self.reporter.phase("sample", number, len(prompts))
            if not self._is_mine(number):
                continue
            made = self._one(number, prompt)
            if self.accelerator.is_main_process:
                written += self._write(made, prompt, step, epoch)
            elif not self._all_together:
                others.append(made)
        if self.accelerator.num_processes > 1:
            gathered: list[_Made] = gather_object(others)
            if self.accelerator.is_main_process:
                written += sum(self._write(made, prompts[made.number], step, epoch) for made in gathered)
        return written

    @property
    def _all_together(self) -> bool:
        """Whether the weights are spread over the processes, so that none can predict without the others."""
        return in_step(self.accelerator)

    def _is_mine(self, number: int) -> bool:
        alone = self.accelerator.num_processes == 1 or self._all_together
        return alone or number % self.accelerator.num_processes == self.accelerator.process_index

    def _agreed_prompts(self, step: int) -> list[SamplePrompt]:
        """The prompts as the first process reads them: the file may be edited at any moment."""
        found = [self._readable_prompts(step) if self.accelerator.is_main_process else []]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        return found[0]

    def _readable_prompts(self, step: int) -> list[SamplePrompt]:
        try:
            prompts = self.prompts()
        except (UserError, OSError, ValueError) as error:
            self.reporter.warn("sample", f"No sample pictures at step {step}: {error}", key="sample_prompts")
            return []
        if not prompts:
            message = f"No sample pictures at step {step}: there is no prompt."
            self.reporter.warn("sample", message, "Give a file with prompts in sample_prompts.", "sample_prompts")
        return prompts

    def _picture(self, prompt: SamplePrompt) -> Image:
        rewrite = self.method.rewrite_prompt
        negative = None if prompt.negative is None else rewrite(prompt.negative)
        read = replace(prompt, prompt=rewrite(prompt.prompt), negative=negative)
        with self.method.guide(read, self.device, self.dtype) as guide:
            return self.family.sample(
                self.model,
                read,
                sampler=self.options.sample_sampler,
                options=self.model_options,
                device=self.device,
                dtype=self.dtype,
                guide=guide,
            )

    def _one(self, number: int, prompt: SamplePrompt) -> _Made:
        process = self.accelerator.process_index
        try:
            return _Made(number, self._picture(prompt), process)
        except TerminatedError:
            raise
        except Exception as error:  # noqa: BLE001 (hours of training are worth more than a picture)
            problem = str(error) if isinstance(error, UserError) else _named(error)
            return _Made(number, None, process, problem)

    def _write(self, made: _Made, prompt: SamplePrompt, step: int, epoch: int | None) -> int:
        image, problem = made.image, made.problem
        path = sample_folder(self.output_dir) / sample_name(self.output_name, prompt, step, epoch)
        try:
            if image is not None:
                save_png(image, path, prompt)
        except (OSError, UserError) as error:
            problem = str(error)
        if image is None or problem:
            self.reporter.warn("sample", f"The sample picture of prompt {prompt.index} failed: {problem}")
            return 0
        self.reporter.event(
            "sample",
            path=str(path),
            step=step,
            epoch=epoch,
            index=prompt.index,
            prompt=prompt.prompt,
            seed=int(image.info["seed"]),
            process=made.process,
        )
        return 1


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
