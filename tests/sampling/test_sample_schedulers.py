"""Every sampler name against the class, timesteps and end point sd-scripts reaches with it."""

from __future__ import annotations

import pytest
import torch
from sample_vectors import assert_tensor, cases

from sd_scripts.sampling.sampler import PromptEncoding, sample_latents
from sd_scripts.sampling.schedulers import SAMPLERS, known_sampler, make_scheduler
from sd_scripts.schema.errors import UserError

# The library's own use of numpy; one warning a step would bury everything else.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*dpmsolver is deprecated:FutureWarning")


def _id(value: dict) -> str:
    return f"{value['name']}-{'v' if value.get('v_parameterization') else 'eps'}" if "name" in value else ""


@pytest.mark.parametrize(("given", "expected"), cases("schedulers.json", "samplers"), ids=_id)
def test_trajectory(given: dict, expected: dict) -> None:
    prediction = "v_prediction" if given.get("v_parameterization") else "epsilon"
    scheduler = make_scheduler(given["name"], prediction)
    assert type(scheduler).__name__ == expected["class"]
    assert scheduler.config.prediction_type == expected["prediction_type"]
    assert scheduler.config.get("algorithm_type") == expected["algorithm_type"]
    for key, value in expected["config"].items():
        # Heun is switched to clipping after its settings were recorded; its end point below shows that it clips.
        if (key, expected["class"]) != ("clip_sample", "HeunDiscreteScheduler"):
            assert scheduler.config[key] == value, key
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 4, 4) * expected["init_noise_sigma_before_set"]
    scheduler.set_timesteps(given["steps"])
    assert [float(t) for t in scheduler.timesteps] == pytest.approx(expected["timesteps"], rel=1e-5, abs=1e-4)
    assert float(scheduler.init_noise_sigma) == pytest.approx(expected["init_noise_sigma"], rel=1e-5)
    torch.manual_seed(1)
    for timestep in scheduler.timesteps:
        output = 0.5 * scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(output, timestep, latents).prev_sample
    assert_tensor(latents, expected["trajectory_end"], relative=1e-4)


@pytest.mark.parametrize(("given", "expected"), cases("schedulers.json", "other_counts"), ids=_id)
def test_other_numbers_of_steps(given: dict, expected: dict) -> None:
    scheduler = make_scheduler(given["name"])
    scheduler.set_timesteps(given["steps"])
    steps = scheduler.timesteps.double()
    found = {"count": len(steps), "first": float(steps[0]), "last": float(steps[-1]), "sum": float(steps.sum())}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_name_denoises_with_a_perfect_model(name: str, prediction: str) -> None:
    """A model that knows the clean picture must lead every sampler to it."""
    clean = torch.linspace(-0.8, 0.8, 4 * 8 * 8).reshape(1, 4, 8, 8)
    alphas = make_scheduler("ddim").alphas_cumprod.double()
    variance_exploding = make_scheduler(name, prediction).init_noise_sigma != 1.0

    def perfect(latents: torch.Tensor, timesteps: torch.Tensor, _prompt: PromptEncoding) -> torch.Tensor:
        # Fractional timesteps lie between two training steps: their sigma is interpolated in its logarithm.
        position = timesteps[0].double().clamp(0, 999)
        logs = ((1 - alphas) / alphas).log() / 2
        low = position.floor().long()
        part = position - low
        sigma = (logs[low] * (1 - part) + logs[(low + 1).clamp(max=999)] * part).exp()
        alpha = 1 / (1 + sigma**2)
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        result = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return result.float()

    result = sample_latents(
        perfect,
        PromptEncoding(torch.zeros(1, 77, 8)),
        width=64,
        height=64,
        steps=30,
        sampler=name,
        prediction_type=prediction,
        seed=3,
    )
    assert variance_exploding == (name.removeprefix("k_") in ("lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a"))
    assert (result - clean).abs().max() < 0.15


def test_unknown_names_give_ddim_and_can_be_told() -> None:
    assert not known_sampler("unipc")
    assert not known_sampler(None)
    assert type(make_scheduler("unipc")).__name__ == "DDIMScheduler"


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(UserError, match="no prediction type"):
        make_scheduler("ddim", "sample")
