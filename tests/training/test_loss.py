"""Losses, weights and the running average against recorded numbers."""

import json
from typing import Any

import pytest
import torch
from training_vectors import check_tensor, load

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loss import LossOptions
from sd_scripts.training.loss import (
    LossRecorder,
    apply_masks,
    debiased_weight,
    elementwise,
    masks_of_images,
    min_snr_weight,
    per_sample,
    scale_v_weight,
    v_like_weight,
    weigh,
)
from sd_scripts.training.noise import NoiseSample, Schedule, huber_thresholds, snr_of

VECTORS = load("noise_and_loss")
SCHEDULE = Schedule.scaled_linear()


def _weight(case: dict[str, Any], snr: torch.Tensor) -> torch.Tensor:
    kind = case["kind"]
    if kind.startswith("min_snr"):
        return min_snr_weight(snr, case["gamma"], case["v_prediction"])
    if kind == "scale_v_pred_loss_like_noise_pred":
        return scale_v_weight(snr)
    if kind == "v_pred_like_loss":
        return v_like_weight(snr, case["factor"])
    return debiased_weight(snr, case.get("v_prediction", False))


@pytest.mark.parametrize("case", VECTORS["weights"], ids=lambda case: f"{case['version']}-{case['kind']}")
def test_weights(case: dict[str, Any]) -> None:
    all_snr = SCHEDULE.all_snr
    if "zero-terminal applied BEFORE" in case["kind"]:
        all_snr = snr_of(Schedule.scaled_linear(zero_terminal_snr=True).alphas_cumprod)
    check_tensor(_weight(case, all_snr[torch.tensor(case["timesteps"])]), case["out"], rtol=2e-5)


@pytest.mark.parametrize("case", VECTORS["weights_all"], ids=lambda case: f"seed{case['seed']}")
def test_all_weights_of_random_losses(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    timesteps, loss = torch.randint(0, 1000, (6,)), torch.rand(6)
    snr = SCHEDULE.all_snr[timesteps]
    check_tensor(timesteps, case["timesteps"])
    check_tensor(loss * min_snr_weight(snr, 5, False), case["min_snr_eps"])
    check_tensor(loss * min_snr_weight(snr, 5, True), case["min_snr_v"])
    check_tensor(loss * scale_v_weight(snr), case["scale_v"])
    check_tensor(loss * v_like_weight(snr, 1.0), case["v_like_1"])
    check_tensor(loss * debiased_weight(snr, False), case["debiased"])
    chain = loss * min_snr_weight(snr, 5, True) * scale_v_weight(snr) * debiased_weight(snr, False)
    check_tensor(chain, case["chain_min_snr_v_then_scale_v_then_debiased"])


@pytest.mark.parametrize("case", VECTORS["batch_loss"], ids=lambda case: f"seed{case['seed']}")
def test_batch_loss(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    latents, noise, prediction = (torch.randn(2, 4, 8, 8) for _ in range(3))
    timesteps = torch.randint(0, 1000, (2,))
    check_tensor(timesteps, case["timesteps"])
    kind = "v_prediction" if case["v_prediction"] else "epsilon"
    target = SCHEDULE.velocity(latents, noise, timesteps) if case["v_prediction"] else noise
    sample = NoiseSample(noise, latents, timesteps, target, None)
    weights = torch.tensor(case["loss_weights"])

    def total(**more: Any) -> float:
        options = LossOptions(min_snr_gamma=case["min_snr_gamma"], **more)
        return per_sample(prediction, sample, options, SCHEDULE, kind, weights).mean().item()

    assert total() == pytest.approx(case["loss"], rel=1e-5)
    check_tensor(per_sample(prediction, sample, LossOptions(), SCHEDULE, kind), case["mse_per_sample"])
    if "with_v_like_0.5" in case:
        assert total(v_pred_like_loss=0.5) == pytest.approx(case["with_v_like_0.5"], rel=1e-5)
    if "with_scale_v" in case:
        assert total(scale_v_pred_loss_like_noise_pred=True) == pytest.approx(case["with_scale_v"], rel=1e-5)
    if not case["v_prediction"]:
        assert total(debiased_estimation_loss=True) == pytest.approx(case["with_debiased"], rel=1e-5)
    else:
        # v0.8.4 used the epsilon weight for v-prediction; newer versions repaired that, and so do we.
        assert total(debiased_estimation_loss=True) != pytest.approx(case["with_debiased"], rel=1e-2)
        plain = per_sample(
            prediction, sample, LossOptions(min_snr_gamma=case["min_snr_gamma"]), SCHEDULE, kind, weights
        )
        older = (plain * debiased_weight(SCHEDULE.all_snr[timesteps], False)).mean().item()
        assert older == pytest.approx(case["with_debiased"], rel=1e-5)


@pytest.mark.parametrize("case", VECTORS["conditional_loss"], ids=str)
def test_loss_types(case: dict[str, Any]) -> None:
    names = ("loss_type", "huber_schedule", "huber_c", "huber_scale")
    options = LossOptions(**{name: case[name] for name in names if name in case})
    timesteps = torch.tensor(case.get("timesteps", [0] * 7))
    if "error" in case:
        with pytest.raises(UserError) as caught:
            huber_thresholds(timesteps, SCHEDULE, options)
        assert caught.value.key == "huber_schedule"
        return
    torch.manual_seed(case["seed"])
    prediction, target = torch.randn(7, 4, 4, 4), torch.randn(7, 4, 4, 4)
    thresholds = huber_thresholds(timesteps, SCHEDULE, options)
    if "threshold_per_timestep" in case:
        assert thresholds is not None
        check_tensor(thresholds, case["threshold_per_timestep"])
    else:
        assert thresholds is None
    loss = elementwise(prediction, target, options.loss_type, thresholds)
    check_tensor(loss.mean(dim=(1, 2, 3)), case["loss_per_sample"])
    assert loss.mean().item() == pytest.approx(case["loss_mean_reduction"], rel=1e-5)
    assert loss.sum().item() == pytest.approx(case["loss_sum_reduction"], rel=1e-5)


def test_unknown_loss_type_is_named() -> None:
    with pytest.raises(UserError, match="l3"):
        elementwise(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), "l3", None)


@pytest.mark.parametrize("case", VECTORS["masked_loss"], ids=lambda case: f"seed{case['seed']}-{case['shape']}")
def test_masked_loss(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    loss = torch.rand(case["shape"])
    masks = None
    if "conditioning_images" in case:
        masks = masks_of_images(torch.rand(case["conditioning_images"]) * 2 - 1)
    elif "alpha_masks" in case:
        masks = torch.rand(case["alpha_masks"])
    found = apply_masks(loss, masks)
    check_tensor(found, case["result"])
    if "mean" in case:
        assert found.mean().item() == pytest.approx(case["mean"], rel=1e-5)


def test_a_mask_takes_the_gradient_away() -> None:
    prediction = torch.zeros(1, 4, 4, 4, requires_grad=True)
    sample = NoiseSample(
        torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.tensor([10]), torch.ones(1, 4, 4, 4), None
    )
    mask = torch.zeros(1, 32, 32)
    mask[:, :16] = 1.0
    per_sample(prediction, sample, LossOptions(), SCHEDULE, "epsilon", None, mask).mean().backward()
    assert prediction.grad is not None
    assert prediction.grad[:, :, :2].abs().min() > 0 and prediction.grad[:, :, 2:].abs().max() == 0


def test_weights_apply_in_half_precision_predictions() -> None:
    sample = NoiseSample(
        torch.ones(2, 4, 4, 4), torch.zeros(2, 4, 4, 4), torch.tensor([10, 900]), torch.ones(2, 4, 4, 4), None
    )
    options = LossOptions(min_snr_gamma=5.0)
    found = per_sample(torch.zeros(2, 4, 4, 4, dtype=torch.bfloat16), sample, options, SCHEDULE, "epsilon")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, weigh(torch.ones(2), sample.timesteps, SCHEDULE, options, "epsilon"))


def test_loss_recorder() -> None:
    recorder = LossRecorder()
    averages = []
    for epoch, step, loss in VECTORS["loss_recorder"]["sequence"]:
        recorder.add(epoch, step, loss)
        averages.append(recorder.average)
    assert averages == pytest.approx(VECTORS["loss_recorder"]["moving_average"])


def test_loss_recorder_goes_on_exactly_after_json() -> None:
    whole, resumed = LossRecorder(), LossRecorder()
    assert resumed.average == 0.0
    for step in range(50):
        whole.add(0, step, 1 / (3 + step))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for step in range(20):
        whole.add(1, step, 1 / (7 + step))
        resumed.add(1, step, 1 / (7 + step))
        assert whole.average == resumed.average
