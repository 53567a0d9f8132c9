"""One training step on tensors without numbers: how much memory it would take, on a machine that has it or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sd_scripts.data.batch_type import Batch
from sd_scripts.data.dataset import DatasetGroup
from sd_scripts.families.base import Family, Model
from sd_scripts.methods.base import Method, count_parameters
from sd_scripts.methods.network import NetworkMethod
from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.commands import TrainConfig
from sd_scripts.trainer.memory_tracker import Split, StepTracker, norms_as_on_cuda, offloaded
from sd_scripts.trainer.optimizer_memory import OptimizerNeed, optimizer_need
from sd_scripts.trainer.setup import attach, training_captions
from sd_scripts.trainer.shape_model import pretend, shape_model, without_numbers
from sd_scripts.trainer.step import Ingredients, Predictor, StepMaths
from sd_scripts.training.plan import RunPlan
from sd_scripts.training.precision import Precision, resolve

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LargestBatch:
    """The batch that takes most: width and height in pixels, pictures, and whether it has a loss mask."""

    width: int
    height: int
    pictures: int
    masks: bool


@dataclass(frozen=True)
class FakeRun:
    """What a run would be like.

    peak: bytes when memory is fullest; trained: numbers that are trained; need: the optimizer's; batch: the largest;
    file_tensors: name -> tensor of what a save writes, and `state_bytes` of a training state; notes: sentences.
    """

    peak: Split
    trained: int
    need: OptimizerNeed
    batch: LargestBatch
    device: str
    file_tensors: dict[str, Tensor]
    state_bytes: int
    notes: list[str] = field(default_factory=list)


def largest_batch(group: DatasetGroup) -> LargestBatch:
    """The largest batch of a data set: most pixels over all its pictures."""
    found = [
        LargestBatch(*bucket.size, min(dataset.spec.batch_size, bucket.count), dataset.has_masks(group.blueprint.masks))
        for dataset in group.datasets
        for bucket in dataset.buckets
        if bucket.count
    ]
    if not found:
        raise ValueError("the batches come from a dataset_class, whose sizes are not known before")
    return max(found, key=lambda batch: (batch.width * batch.height * batch.pictures, batch.width))


def fake_run(
    config: TrainConfig, family: Family, method: Method, group: DatasetGroup, plan: RunPlan, device: str
) -> FakeRun:
    """Build the run without weights and do its step.

    Args:
        config: the options; the method is used up by this.
        family, method: as for a run, not attached.
        group: the scanned pictures.
        plan: the lengths.
        device: "cuda" or "cpu": the machine that is predicted.

    Raises:
        UserError: options that a run would refuse too. Other errors: the step cannot be done without numbers.
    """
    config, notes = _simplified(config, method)
    precision = resolve(config.training, config.saving, device)
    batch = largest_batch(group)
    model = _attached(config, family, method, precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        pretend([model.unet, *model.text_encoders, model.vae, method.module])
        if device == "cuda":
            norms_as_on_cuda([model.unet, *model.text_encoders, method.module])
        groups = method.parameter_groups()
        need = optimizer_need(
            method,
            groups,
            config.optimizer,
            several_at_once=device == "cuda",
            allow_plugins=config.run.allow_plugins,
        )
        step = _Step(config, family, method, model, precision, plan, need, groups, device)
        peak = step.run(batch, list(training_captions(group)))
        tensors = _written(method, model)
        state = sum(value.nbytes for value in method.module.state_dict().values()) + need.state
    notes += [need.note] if need.note else []
    return FakeRun(peak, count_parameters(groups), need, batch, device, tensors, state, notes)


def _simplified(config: TrainConfig, method: Method) -> tuple[TrainConfig, list[str]]:
    """The options without what needs numbers or other programs and changes no step's memory."""
    notes = []
    if config.training.torch_compile:
        notes.append("Compiled code may need less than what is said here for code that is not.")
    if config.training.deepspeed:
        notes.append("DeepSpeed shares weights and states out; that is not counted here.")
    if isinstance(method, NetworkMethod):
        # Merging adds numbers to weights that are there anyway.
        method.options = replace(method.options, base_weights=None, base_weights_multiplier=None)
    # xformers keeps as much as PyTorch's own attention, and need not be installed where a run is only planned.
    training = replace(config.training, xformers=False, torch_compile=False)
    return replace(config, training=training), notes


def _attached(config: TrainConfig, family: Family, method: Method, precision: Precision) -> Model:
    """The model with the method attached, as `setup` does it, on the meta device."""
    dtype = precision.trained if method.saves_whole_model else precision.weights
    model = shape_model(family, config.model, dtype)
    family.apply_memory_options(model, config.training)
    nn.Module.to(model.vae, dtype=precision.vae(config.model.no_half_vae))
    with without_numbers():
        method.prepare_model(model, family, precision.weights)
        attach(config, family, model, method, precision, torch.device("meta"))
    return model


def _written(method: Method, model: Model) -> dict[str, Tensor]:
    """The tensors of a save by names of their own."""
    if method.saves_whole_model:
        parts = {"unet": model.unet, "vae": model.vae}
        parts |= {f"text_encoder{index}": encoder for index, encoder in enumerate(model.text_encoders)}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    own: Callable[[], dict[str, Tensor]] | None = getattr(method, "tensors", None)
    return own() if own is not None else dict(method.module.state_dict())


class _Step:
    """One optimizer step of a prepared run, under a fake tensor mode."""

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        method: Method,
        model: Model,
        precision: Precision,
        plan: RunPlan,
        need: OptimizerNeed,
        groups: list[ParameterGroup],
        device: str,
    ) -> None:
        self.config, self.family, self.method, self.model = config, family, method, model
        self.precision, self.plan, self.need, self.device = precision, plan, need, device
        self.parameters = [parameter for group in groups for parameter in group.params]
        schedule = family.noise_schedule(config.loss)
        ingredients = Ingredients(family, model, method, config.model)
        self.maths = StepMaths(ingredients, schedule, config.loss, _CPU, precision.weights)
        self.predictor = Predictor(method.module, ingredients)

    def run(self, size: LargestBatch, captions: list[str]) -> Split:
        """The split at the moment when most is taken, of all steps but the first."""
        kept = self._text_outputs(size, captions)
        with StepTracker() as tracker:
            tracker.weights(self._resident())
            state = torch.empty(self.need.state, dtype=torch.uint8)
            tracker.optimizer([state])
            shared = self._shared_gradients(tracker)
            fused = self.config.optimizer.fused_backward_pass
            tracker.restart()
            if not fused:
                self._optimizer_step(tracker)
            with self._gradients_are_seen(tracker, freed=fused):
                self._backward(tracker, _batch(size, captions, kept, self.config, self.method))
            del state, shared
        return tracker.peak

    def _resident(self) -> list[nn.Module]:
        """Everything whose weights lie in the memory that is predicted, while training goes on."""
        config, model, on_cuda = self.config, self.model, self.device == "cuda"
        needed_later = bool(config.sampling.sample_prompts) or self.method.saves_whole_model
        parts: list[nn.Module] = [model.unet, self.method.module]
        if not config.text_cache.cache_text_encoder_outputs or (needed_later and not on_cuda):
            parts += model.text_encoders
        vae_stays = not config.dataset.cache_latents or (needed_later and (config.training.highvram or not on_cuda))
        return [*parts, model.vae] if vae_stays else parts

    def _shared_gradients(self, tracker: StepTracker) -> list[Tensor]:
        """Copies that processes exchange, unless gradients are views of them."""
        if self.plan.processes == 1 or self.config.training.ddp_gradient_as_bucket_view:
            return []
        copies = [torch.empty_like(parameter) for parameter in self.parameters]
        tracker.gradients(copies)
        return copies

    def _optimizer_step(self, tracker: StepTracker) -> None:
        """All gradients are there, and whatever the optimizer takes for a moment; gradients go afterwards."""
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)
            tracker.gradients([parameter.grad])
        for_a_moment = torch.empty(self.need.step, dtype=torch.uint8)
        del for_a_moment
        if self.plan.accumulation == 1:  # else they are there from the batch before
            for parameter in self.parameters:
                parameter.grad = None

    @contextmanager
    def _gradients_are_seen(self, tracker: StepTracker, *, freed: bool) -> Iterator[None]:
        """Inside, gradients of parameters are counted as such; `freed`: each is used at once and goes."""

        def seen(parameter: Tensor) -> None:
            if parameter.grad is not None:
                tracker.gradients([parameter.grad])
            if freed:
                for_a_moment = torch.empty(self.need.step, dtype=torch.uint8)
                del for_a_moment
                parameter.grad = None

        handles = [parameter.register_post_accumulate_grad_hook(seen) for parameter in self.parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _backward(self, tracker: StepTracker, batch: Batch) -> None:
        """Forward and backward of a batch, as the loop does them."""
        offloads = self.config.training.cpu_offload_checkpointing and self.device == "cuda"
        mixed = self.precision.mixed_precision != "no"
        self.method.on_epoch_start()
        self.method.on_step_start(batch.network_multipliers, 0)
        latents = self.maths.latents(batch)
        lowered = torch.autocast("cpu", self.precision.weights, enabled=mixed)
        with lowered, offloaded(tracker) if offloads else nullcontext():
            prediction, sample = self.predictor(latents, batch, self.maths.draw)
        prediction = prediction.float()  # accelerate gives float32 back
        loss = self.maths.losses(prediction, sample, batch).mean()
        del latents, prediction, sample
        loss.backward()

    def _text_outputs(self, size: LargestBatch, captions: list[str]) -> dict[str, Tensor] | None:
        if not self.config.text_cache.cache_text_encoder_outputs:
            return None
        with torch.no_grad(), StepTracker():
            found = self.family.text_outputs(self.model, _longest(captions, size.pictures), options=self.config.model)
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def _longest(captions: list[str], count: int) -> list[str]:
    ordered = sorted(captions, key=len, reverse=True) or [""]
    return [ordered[index % len(ordered)] for index in range(count)]


def _batch(
    size: LargestBatch, captions: list[str], kept: dict[str, Tensor] | None, config: TrainConfig, method: Method
) -> Batch:
    count, height, width = size.pictures, size.height, size.width
    cached = config.dataset.cache_latents
    pair = torch.empty(count, 2, dtype=torch.int64)
    return Batch(
        images=None if cached else torch.empty(count, 3, height, width),
        latents=torch.empty(count, 4, height // 8, width // 8) if cached else None,
        captions=_longest(captions, count),
        loss_weights=torch.empty(count),
        network_multipliers=torch.empty(count),
        masks=torch.empty(count, height, width) if size.masks else None,
        conditioning_images=torch.empty(count, 3, height, width) if method.needs_control_images else None,
        original_sizes=pair,
        crop_top_lefts=pair,
        target_sizes=pair,
        paths=[""] * count,
        flipped=[False] * count,
        text_outputs=kept,
    )
