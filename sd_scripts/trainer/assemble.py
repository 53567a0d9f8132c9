"""From a loaded model with its method attached to a `Run`: optimizer, data, saves, samples, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from sd_scripts.data.batch import Batch
from sd_scripts.data.dataset import DatasetGroup
from sd_scripts.data.loader import BatchLoader
from sd_scripts.families.base import Family, Model
from sd_scripts.methods.base import Method
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.naming import Saves
from sd_scripts.trainer.facts import metadata_maker
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.trainer.run import Run
from sd_scripts.trainer.samples import SampleMaker
from sd_scripts.trainer.saving import Saver, StateWriter
from sd_scripts.trainer.setup import Data
from sd_scripts.trainer.spread import check_spread
from sd_scripts.trainer.step import Ingredients, Predictor, StepMaths
from sd_scripts.trainer.upload import Uploader
from sd_scripts.trainer.validation import Validation
from sd_scripts.training import optimizers, schedulers
from sd_scripts.training.fused import FusedBackward, check_fused
from sd_scripts.training.noise import timestep_range
from sd_scripts.training.optimizers import CreatedOptimizer
from sd_scripts.training.plan import RunPlan
from sd_scripts.training.precision import Precision, allow_fp16_gradients
from sd_scripts.training.schedulers import CreatedScheduler


@dataclass(frozen=True)
class Assembly:
    """What must exist before a run can be put together."""

    config: TrainConfig
    family: Family
    method: Method
    model: Model
    data: Data
    plan: RunPlan
    precision: Precision
    accelerator: Accelerator
    reporter: Reporter
    seed: int

    def build(self, state_writer: Callable[[CreatedOptimizer, Any, BatchLoader, nn.Module], StateWriter]) -> Run:
        """The run, prepared by accelerate. `state_writer` makes the function that writes training states."""
        self.reporter.phase("prepare")
        config, accelerator = self.config, self.accelerator
        created, scheduler = self._optimizer()
        check_spread(accelerator, config, self.method, created, validates=self.data.validation is not None)
        maths = self._maths()
        predictor, optimizer = accelerator.prepare(Predictor(self.method.module, maths.ingredients), created.optimizer)
        if accelerator.scaler is not None and config.training.full_fp16:
            allow_fp16_gradients(accelerator.scaler)
        fused = None
        if config.optimizer.fused_backward_pass:
            limit = config.optimizer.max_grad_norm
            fused = FusedBackward(created.optimizer, limit, lambda: bool(accelerator.sync_gradients))
        loader = self._loader(self.data.train)
        write_state = state_writer(created, scheduler.scheduler, loader, predictor)
        return Run(
            accelerator=accelerator,
            reporter=self.reporter,
            method=self.method,
            predictor=predictor,
            optimizer=optimizer,
            created=created,
            scheduler=scheduler.scheduler,
            loader=loader,
            plan=self.plan,
            maths=maths,
            saver=self._saver(created, scheduler, write_state, predictor),
            samples=self._samples(predictor),
            validation=self._validation(maths, predictor),
            accumulation=self.plan.accumulation,
            max_grad_norm=config.optimizer.max_grad_norm,
            fused=fused,
            seed=self.seed,
        )

    def _optimizer(self) -> tuple[CreatedOptimizer, CreatedScheduler]:
        options, plugins = self.config.optimizer, self.config.run.allow_plugins
        created = optimizers.create(self.method.parameter_groups(), options, allow_plugins=plugins)
        self.method.prepare_optimizer(created)
        scaled = self.accelerator.scaler is not None
        check_fused(options, created, self.config.training.gradient_accumulation_steps, scaled)
        scheduler = schedulers.create(created, options, self.plan.total_steps, allow_plugins=plugins)
        self.reporter.notices([*created.notices, *scheduler.notices])
        return created, scheduler

    def _maths(self) -> StepMaths:
        offload = self.config.training.cpu_offload_checkpointing
        ingredients = Ingredients(self.family, self.model, self.method, self.config.model, offload)
        device = self.accelerator.device
        schedule = self.family.noise_schedule(self.config.loss).to(device)
        return StepMaths(ingredients, schedule, self.config.loss, device, self.precision.weights)

    def _loader(self, group: DatasetGroup) -> BatchLoader:
        return BatchLoader(
            group,
            workers=self.config.dataset.max_data_loader_n_workers,
            persistent=self.config.dataset.persistent_data_loader_workers,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            accumulation=self.plan.accumulation,
            max_train_steps=self.plan.total_steps,
        )

    def _saver(
        self, created: CreatedOptimizer, scheduler: CreatedScheduler, write_state: StateWriter, predictor: nn.Module
    ) -> Saver:
        config = self.config
        uploader = None
        if config.saving.huggingface_repo_id and self.accelerator.is_main_process:
            uploader = Uploader(config.saving, self.reporter)
            uploader.check()
        aside = self.data.validation
        make_metadata = metadata_maker(
            config,
            self.family,
            self.model,
            self.method,
            self.data.train,
            aside.images if aside else 0,
            self.plan,
            created,
            scheduler.name,
            self.seed,
        )
        return Saver(
            accelerator=self.accelerator,
            method=self.method,
            created=created,
            options=config.saving,
            saves=Saves.of(config.saving, self.plan, self.method.file_format, self.method.default_name),
            dtype=self.precision.save,
            make_metadata=make_metadata,
            write_state=write_state,
            predictor=predictor,
            uploader=uploader,
            reporter=self.reporter,
        )

    def _samples(self, predictor: nn.Module) -> SampleMaker:
        config = self.config
        return SampleMaker(
            accelerator=self.accelerator,
            family=self.family,
            method=self.method,
            model=self.model,
            model_options=config.model,
            options=config.sampling,
            output_dir=Path(config.saving.output_dir or "."),
            output_name=config.saving.output_name or self.method.default_name,
            device=self.accelerator.device,
            dtype=self.precision.weights,
            predictor=predictor,
            keep_vae=config.training.highvram or not config.dataset.cache_latents,
            reporter=self.reporter,
        )

    def _validation(self, maths: StepMaths, predictor: nn.Module) -> Validation | None:
        group = self.data.validation
        if group is None:
            return None
        loader = self._loader(group)
        low, high = timestep_range(self.config.loss, maths.schedule)

        def batches() -> Iterator[Batch]:
            return iter(loader.epoch(1))

        chosen = self.config.validation.validation_seed
        return Validation(
            options=self.config.validation,
            maths=maths,
            predictor=predictor,
            batches=batches,
            seed=self.seed if chosen is None else chosen,
            length=len(group),
            low=low,
            high=high,
        )
