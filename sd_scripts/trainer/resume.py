"""Training states: what a run puts into them, and going on from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from sd_scripts.data.loader import BatchLoader
from sd_scripts.methods.base import Method
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.trainer.loop import Position, Trainer
from sd_scripts.trainer.run import Run
from sd_scripts.trainer.saving import StateWriter
from sd_scripts.trainer.spread import DeepSpeedShards, SpreadState, is_deepspeed, is_fsdp
from sd_scripts.training.checkpoint import LoadedState, StateParts, load_state, point_to, resolve_resume, save_state
from sd_scripts.training.loss import LossRecorder
from sd_scripts.training.optimizers import CreatedOptimizer
from sd_scripts.training.plan import starts_elsewhere
from sd_scripts.training.state_files import locate, read_manifest


def state_parts(
    accelerator: Accelerator,
    method: Method,
    created: CreatedOptimizer,
    scheduler: Any,
    loader: BatchLoader,
    predictor: nn.Module,
) -> StateParts:
    """The living parts of a run, whether they lie in one place or are spread over the processes."""
    return StateParts(
        method.module,
        created,
        scheduler,
        accelerator.scaler,
        loader,
        whole=SpreadState(accelerator, predictor, created) if is_fsdp(accelerator) else None,
        shards=DeepSpeedShards(accelerator, predictor) if is_deepspeed(accelerator) else None,
    )


def state_writer(
    accelerator: Accelerator, method: Method, config: TrainConfig
) -> Callable[[CreatedOptimizer, Any, BatchLoader, nn.Module], StateWriter]:
    """A maker of the function that writes states; the parts are known only after the optimizer is made."""

    def make(created: CreatedOptimizer, scheduler: Any, loader: BatchLoader, predictor: nn.Module) -> StateWriter:
        parts = state_parts(accelerator, method, created, scheduler, loader, predictor)

        def write(folder: Path, progress: dict[str, Any]) -> None:
            save_state(
                folder,
                parts,
                progress,
                options=config.values(),
                facts={"batches": len(loader)},
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
                gather=lambda own: gather_object([own]),
                barrier=accelerator.wait_for_everyone,
            )
            if accelerator.is_main_process:
                point_to(folder, config.saving.output_name, int(progress["step"]))

        return write

    return make


def from_hub(text: str) -> Path:
    """Fetch a state folder `<user>/<repo>/<path>[:<revision>[:<type>]]` from the hub; returns where it lies.

    Raises UserError for another form, or when the hub does not give it.
    """
    name, _, rest = text.partition(":")
    revision, _, kind = rest.partition(":")
    words = name.strip("/").split("/")
    if len(words) < 3:
        raise UserError(
            f"resume '{text}' does not name a folder on the hub.",
            "resume",
            "It reads user/repository/folder[:revision].",
        )
    repo, folder = "/".join(words[:2]), "/".join(words[2:])
    try:
        root = snapshot_download(
            repo, revision=revision or None, repo_type=kind or None, allow_patterns=[f"{folder}/*"]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"The state '{text}' cannot be fetched: {str(error).splitlines()[0]}", "resume") from error
    return Path(root) / folder


def check_resume(saving: SavingOptions) -> int | None:
    """Make sure, before anything is loaded, that the state to resume from is there and whole.

    Returns the seed of the run that wrote it, None where that is not known. Raises UserError.
    """
    if not saving.resume or saving.resume_from_huggingface:
        return None
    manifest = read_manifest(locate(resolve_resume(saving.resume, saving.output_dir, saving.output_name)))
    seed = ((manifest or {}).get("loader") or {}).get("seed")
    return seed if isinstance(seed, int) else None


def refuse_code(deepspeed: bool, trusted: bool) -> None:
    """DeepSpeed reads states in a way that runs what is in them. Raises UserError unless that was allowed."""
    if deepspeed and not trusted:
        raise UserError(
            "A state that DeepSpeed wrote can hold code, which would run.",
            "resume",
            "If it is yours, start with --allow_plugins.",
        )


def _load(run: Run, config: TrainConfig) -> LoadedState | None:
    saving = config.saving
    if not saving.resume:
        return None
    folder = (
        from_hub(saving.resume)
        if saving.resume_from_huggingface
        else resolve_resume(saving.resume, saving.output_dir, saving.output_name)
    )
    refuse_code(is_deepspeed(run.accelerator), config.run.allow_plugins)
    parts = state_parts(run.accelerator, run.method, run.created, run.scheduler, run.loader, run.predictor)
    return load_state(
        folder,
        parts,
        options=config.values(),
        facts={"batches": len(run.loader)},
        num_processes=run.accelerator.num_processes,
    )


def resume_trainer(run: Run, config: TrainConfig) -> Trainer:
    """The trainer at its starting position: the beginning, a given step or epoch, or where a saved state stands.

    Raises UserError when the state does not fit, or has already reached the end.
    """
    start = run.plan.start
    position, recorder = Position(start.epoch, start.batch, start.step), LossRecorder()
    state = _load(run, config)
    if state is None:
        return Trainer(run, position, recorder)
    run.reporter.notices(state.notices)
    if state.progress is not None and not starts_elsewhere(config.training):
        # Batches are counted in each process: the same place in the epoch is another number with other processes.
        processes = run.accelerator.num_processes
        batch = state.progress["batch"] * (state.processes or processes) // processes
        position = Position(state.progress["epoch"], batch, state.progress["step"])
        recorder.load_state_dict(state.progress["recorder"])
    elif state.step and not starts_elsewhere(config.training):
        position = Position(state.step // max(1, run.plan.steps_per_epoch), 0, state.step)
    if position.step >= run.plan.total_steps:
        raise UserError(
            f"The state stands at step {position.step}, and the run ends at step {run.plan.total_steps}.",
            "max_train_steps",
            "Raise max_train_steps or max_train_epochs to go on.",
        )
    run.reporter.say(f"resumed from {state.folder.name} at step {position.step}")
    return Trainer(run, position, recorder)
