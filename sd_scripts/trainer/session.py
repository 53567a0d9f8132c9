"""One run from its options to its exit code: set-up, training, and what is said when it ends."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

from sd_scripts.families.base import Family
from sd_scripts.methods.base import Method
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.schema.errors import UserError
from sd_scripts.trainer.accelerating import common_seed, guess_device, make_accelerator
from sd_scripts.trainer.assemble import Assembly
from sd_scripts.trainer.endings import TerminatedError, explain, is_lost_process, signals_end_the_run
from sd_scripts.trainer.facts import inspect_dataset, plan_event, show_dataset
from sd_scripts.trainer.guard import NotFiniteError
from sd_scripts.trainer.loop import Trainer
from sd_scripts.trainer.reporting import Reporter
from sd_scripts.trainer.resume import check_resume, resume_trainer, state_writer
from sd_scripts.trainer.run import Run
from sd_scripts.trainer.setup import (
    Data,
    attach,
    cache_latents,
    cache_text_outputs,
    check_paths,
    load_model,
    plan_of,
    scan,
)
from sd_scripts.trainer.trackers import start_trackers
from sd_scripts.training.plan import RunPlan
from sd_scripts.training.precision import resolve
from sd_scripts.training.rng import seed_everything

EXIT_DONE, EXIT_BUG, EXIT_USER_ERROR, EXIT_NOT_FINITE, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 3, 130, 143
SECRETS = ("wandb_api_key", "huggingface_token")


def job_folder(config: TrainConfig) -> Path:
    """Where events and requests live: the job's folder, or `<output_dir>/<output_name>.run` without a job."""
    if config.run.job_dir:
        return Path(config.run.job_dir)
    return Path(config.saving.output_dir or ".") / f"{config.saving.output_name or 'last'}.run"


class Session:
    """A run of one family with one method."""

    def __init__(self, config: TrainConfig, family: Family, method: Method) -> None:
        self.config, self.family, self.method = config, family, method
        is_main = int(os.environ.get("RANK", "0")) == 0
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.reporter = _reporter(config, is_main)
        self.trainer: Trainer | None = None
        if not config.run.job_dir:
            self.reporter.requests()  # left over from an earlier run of this name: not meant for this one

    def run(self) -> int:
        """Run and say how it ended; returns the exit code. Bugs leave their traceback on the console."""
        with signals_end_the_run():
            return self._run()

    def _run(self) -> int:
        try:
            self._end(self._train(), "")
            return EXIT_DONE
        except UserError as error:
            self.reporter.error("option", error.message, error.hint, error.key)
            self._end("failed", str(error))
            return EXIT_USER_ERROR
        except NotFiniteError as error:
            hint = "The weights from before are kept. Try bf16 instead of fp16, no_half_vae, or a lower learning rate."
            self.reporter.error("nan", str(error), hint, "mixed_precision")
            self._end("failed", str(error))
            return EXIT_NOT_FINITE
        except TerminatedError as error:
            self.reporter.error("terminated", "The run was ended from outside.", "Resume from the last saved state.")
            self._end("failed", str(error))
            return EXIT_TERMINATED
        except KeyboardInterrupt:
            self.reporter.error("interrupted", "Interrupted from the keyboard.", "Resume from the last saved state.")
            self._end("stopped", "interrupted from the keyboard")
            return EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001 (the last door: told to the page, traceback on the console)
            if is_lost_process(error, self.processes):
                message = "Another process of this run ended early, so this one ends too."
                self.reporter.error("process", message, "Its own message stands in the log; then resume.")
                self._end("failed", message)
                return EXIT_BUG
            traceback.print_exc()
            code, hint = explain(error)
            self.reporter.error(code, f"{type(error).__name__}: {error}".strip(), hint)
            self._end("failed", f"{type(error).__name__}: {error}")
            return EXIT_BUG
        finally:
            self.reporter.close()

    def _end(self, status: str, reason: str) -> None:
        step = self.trainer.position.step if self.trainer else 0
        self.reporter.event("end", status=status, reason=reason, step=step)

    def _train(self) -> str:
        config, reporter = self.config, self.reporter
        for warning in config.warnings:
            reporter.warn("option", warning.message, warning.hint, warning.key)
        check_paths(config, self.method)
        seed = common_seed(config.training, check_resume(config.saving))
        reporter.phase("scan pictures")
        data = scan(config, self.method, seed)
        plan = plan_of(config, data, self.processes)
        show_dataset(reporter, data.train, plan)
        facts = plan_event(config, data.train, plan)
        if config.run.plan_only:
            if reporter.is_main:
                self._say_plan(data, plan, facts)
            return "done"
        if config.dataset.debug_dataset:
            inspect_dataset(data.train, job_folder(config) / "dataset", reporter, plan.epochs)
            return "done"
        run = self._prepare(data, plan, seed)
        rates = run.created.learning_rates()
        reporter.event("start", **facts, device=str(run.accelerator.device), trains=rates, seed=seed)
        public = {key: value for key, value in config.values().items() if key not in SECRETS}
        start_trackers(run.accelerator, config.logging, public, self.method.project)
        for remark in run.samples.remarks():
            reporter.warn("sample", remark, key="sample_prompts")
        self.trainer = resume_trainer(run, config)
        return self._loop(run, self.trainer)

    def _say_plan(self, data: Data, plan: RunPlan, facts: dict[str, Any]) -> None:
        """Print the plan for people, and as one line of JSON for programs."""
        # Only a plan pays for this import.
        from sd_scripts.trainer.memory_plan import plan_memory, planned_device, sentences

        memory = plan_memory(self.config, self.family, self.method, data.train, plan, planned_device())
        for sentence in sentences(memory):
            self.reporter.say(sentence)
        print(json.dumps(facts | memory, ensure_ascii=False))

    def _prepare(self, data: Data, plan: RunPlan, seed: int) -> Run:
        """Load the model, cache latents, attach the method, make optimizer and the rest."""
        config, family, method, reporter = self.config, self.family, self.method, self.reporter
        precision = resolve(config.training, config.saving, guess_device())
        reporter.notices(precision.notices)
        accelerator = make_accelerator(
            config.training,
            config.logging,
            precision.mixed_precision,
            data.train.batch_size,
            may_leave_out=method.may_leave_out,
            max_grad_norm=config.optimizer.max_grad_norm,
        )
        model = load_model(config, family, method, precision, accelerator.device, reporter)
        method.prepare_model(model, family, precision.weights)
        seed_everything(seed)  # the VAE draws its latents
        cache_latents(config, family, method, model, data, accelerator, reporter)
        cache_text_outputs(config, family, method, model, data, accelerator, reporter)
        seed_everything(seed)  # a network's first weights are drawn next: the same in every process
        attach(config, family, model, method, precision, accelerator.device)
        assembly = Assembly(config, family, method, model, data, plan, precision, accelerator, reporter, seed)
        return assembly.build(state_writer(accelerator, method, config))

    @staticmethod
    def _loop(run: Run, trainer: Trainer) -> str:
        try:
            status = trainer.train()
        except NotFiniteError:
            trainer.keep_last_good()
            raise
        finally:
            run.loader.close()
            if run.saver.uploader:
                run.saver.uploader.wait()
            for tracker in run.accelerator.trackers:
                tracker.finish()  # a log is complete up to where the run ended, however it ended
        return status


def _reporter(config: TrainConfig, is_main: bool) -> Reporter:
    folder = job_folder(config)
    try:
        return Reporter(config.logging, folder if is_main else None)
    except OSError as error:
        key = "job_dir" if config.run.job_dir else "output_dir"
        message = f"{key} '{folder if config.run.job_dir else folder.parent}' cannot be written: {error.strerror}."
        raise UserError(message, key, "Choose another folder.") from error


def run_session(config: TrainConfig, family: Family, method: Method) -> int:
    """Run a session and return its exit code."""
    return Session(config, family, method).run()
