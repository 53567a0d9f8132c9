"""Learning rate curves against recorded values, and the rules around them."""

from typing import Any

import pytest
import torch
import transformers
from training_vectors import load

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.training import optimizers
from sd_scripts.training.schedulers import ENTRIES, CreatedScheduler, create, step_count

CURVES = load("optimizers")["schedulers"]
WARMUPS = load("steps")["lr_warmup"]
_RULES = ["step_rules='1:10,0.1:20,0.01:30,0.005'"]


def _optimizer(rates: tuple[float, ...] = (1.0,), **given: Any) -> optimizers.CreatedOptimizer:
    options = OptimizerOptions(**{"learning_rate": 1.0, "optimizer_type": "SGD", **given})
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in rates]
    return optimizers.create([ParameterGroup("unet", [param], rate) for param, rate in zip(params, rates)], options)


def _curve(made: CreatedScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps + 1):
        rates.append(made.scheduler.get_last_lr()[0])
        made.scheduler.optimizer.step()
        made.scheduler.step()
    return rates


@pytest.mark.parametrize("case", CURVES, ids=lambda case: f"{case['name']}-{case['options']}")
def test_curves(case: dict[str, Any]) -> None:
    extra = {"lr_scheduler_args": _RULES} if case["name"] == "piecewise_constant" else {}
    options = OptimizerOptions(learning_rate=1.0, lr_scheduler=case["name"], **case["options"], **extra)
    if "error" in case["lr"]:
        with pytest.raises(UserError) as caught:
            create(_optimizer(), options, 100)
        assert caught.value.key in ("lr_warmup_steps", "lr_scheduler_min_lr_ratio")
        return
    made = create(_optimizer(), options, 100)
    rates = _curve(made, 100)
    assert made.name == case["name"]
    for step, rate in case["lr"].items():
        assert rates[int(step)] == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize("case", WARMUPS, ids=lambda case: f"{case['scheduler']}-{case['processes']}")
def test_warmup_over_processes(case: dict[str, Any]) -> None:
    options = OptimizerOptions(
        learning_rate=1.0,
        lr_scheduler=case["scheduler"],
        lr_warmup_steps=case["lr_warmup_steps"],
        lr_decay_steps=case.get("lr_decay_steps", 0),
        lr_scheduler_num_cycles=case.get("num_cycles", 1),
        lr_scheduler_power=case.get("power", 1.0),
    )
    # sd-scripts steps once a process and counts the run so; the warm-up it does not, which is mended here.
    rates = _curve(create(_optimizer(), options, case["max_train_steps"] * case["processes"]), 100)
    for step, rate in case["lr_at_step"].items():
        assert rates[int(step)] == pytest.approx(rate, rel=1e-6, abs=1e-9)


def test_every_name_runs_and_resumes() -> None:
    for name in ENTRIES:
        extra = {"lr_scheduler_args": _RULES} if name == "piecewise_constant" else {}
        options = OptimizerOptions(learning_rate=1.0, lr_scheduler=name, lr_scheduler_min_lr_ratio=0.1, **extra)
        whole, part, resumed = (create(_optimizer(), options, 30) for _ in range(3))
        rates = _curve(whole, 30)
        _curve(part, 11)
        resumed.scheduler.load_state_dict(part.scheduler.state_dict())
        assert _curve(resumed, 18) == rates[12:], name


def test_groups_keep_their_ratio() -> None:
    created = _optimizer((1e-3, 5e-4))
    made = create(created, OptimizerOptions(learning_rate=1e-3, lr_scheduler="linear"), 10)
    for _ in range(5):
        created.optimizer.step()
        made.scheduler.step()
    assert made.scheduler.get_last_lr() == pytest.approx([5e-4, 2.5e-4])
    assert created.learning_rates() == pytest.approx({"unet": 5e-4, "unet_2": 2.5e-4})


@pytest.mark.parametrize("start", [None, 0.5])
@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_warmup_with_min_lr_as_in_transformers(start: float | None, warmup: int) -> None:
    options = OptimizerOptions(
        learning_rate=1.0,
        lr_scheduler="cosine_warmup_with_min_lr",
        lr_scheduler_min_lr_ratio=0.1,
        lr_scheduler_num_cycles=1,
        lr_warmup_steps=warmup,
        lr_scheduler_args=[] if start is None else [f"warmup_lr_rate={start}"],
    )
    theirs = transformers.get_scheduler(
        "cosine_warmup_with_min_lr",
        _optimizer().optimizer,
        num_warmup_steps=warmup,
        num_training_steps=40,
        scheduler_specific_kwargs={"min_lr_rate": 0.1, "warmup_lr_rate": start},
    )
    wanted = _curve(CreatedScheduler(theirs, ""), 39)
    assert _curve(create(_optimizer(), options, 40), 39) == pytest.approx(wanted)


@pytest.mark.parametrize("rise", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("fall", ["linear", "cosine", "1-sqrt"])
def test_warmup_stable_decay_as_in_transformers(rise: str, fall: str) -> None:
    options = OptimizerOptions(
        learning_rate=1.0,
        lr_scheduler="warmup_stable_decay",
        lr_scheduler_min_lr_ratio=0.2,
        lr_scheduler_num_cycles=3,
        lr_warmup_steps=6,
        lr_decay_steps=15,
        lr_scheduler_args=[f"warmup_type='{rise}'", f"decay_type='{fall}'"],
    )
    theirs = transformers.get_wsd_schedule(
        _optimizer().optimizer, 6, 15, 40, warmup_type=rise, decay_type=fall, min_lr_ratio=0.2, num_cycles=1.5
    )
    wanted = _curve(CreatedScheduler(theirs, ""), 42)
    assert _curve(create(_optimizer(), options, 40), 42) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("value", "steps"), [(0, 0), (None, 0), (10, 10), (0.1, 20), (0.5, 100), (25.0, 25), (1, 1), (0.0, 0)]
)
def test_steps_and_ratios(value: int | float | None, steps: int) -> None:
    assert step_count(value, 200, "lr_warmup_steps") == steps


@pytest.mark.parametrize("value", [-1, 10.5])
def test_wrong_step_counts(value: float) -> None:
    with pytest.raises(UserError) as caught:
        step_count(value, 200, "lr_decay_steps")
    assert caught.value.key == "lr_decay_steps"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr_scheduler": "cosin"}, "no lr_scheduler 'cosin'"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "validation loss"),
        ({"lr_scheduler": "adafactor"}, "relative_step"),
        ({"lr_scheduler": "adafactor:1.0"}, "relative_step"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 5}, "constant_with_warmup"),
        ({"lr_scheduler": "piecewise_constant"}, "step_rules"),
        ({"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules='x'"]}, "cannot be read"),
        ({"lr_scheduler": "linear", "lr_scheduler_args": ["power=2"]}, "no argument 'power'"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-8}, "not above it"),
        ({"lr_scheduler": "warmup_stable_decay", "lr_scheduler_args": ["decay_type='bent'"]}, "'bent'"),
        ({"lr_scheduler_type": "CosineAnnealingLR", "lr_warmup_steps": 3}, "no effect"),
        ({"lr_scheduler_type": "CosineAnnealingLR"}, "refuses its arguments"),
        ({"lr_scheduler_type": "ReduceLROnPlateau"}, "validation loss"),
        ({"lr_scheduler_type": "os.path.join"}, "--allow_plugins"),
        ({"lr_scheduler_type": "torch.nn.Linear"}, "no learning rate scheduler"),
        ({"lr_scheduler_type": "torch.nowhere.X"}, "cannot be imported"),
    ],
)
def test_wrong_settings_are_one_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        create(_optimizer(), OptimizerOptions(**{"learning_rate": 1.0, **given}), 100)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CosineAnnealingLR", ["T_max=100"]),
        ("torch.optim.lr_scheduler.StepLR", ["step_size=10", "gamma=0.5"]),
        ("torch.optim.lr_scheduler.CosineAnnealingWarmRestarts", ["T_0=10"]),
    ],
)
def test_scheduler_classes(name: str, arguments: list[str]) -> None:
    options = OptimizerOptions(lr_scheduler_type=name, lr_scheduler_args=arguments, lr_scheduler="cosine")
    made = create(_optimizer(), options, 100)
    assert made.name == name and type(made.scheduler).__name__ == name.rpartition(".")[2]
    assert _curve(made, 9)[9] < 1.0 or "Step" in name


def test_adafactor_shows_the_rate_it_chose() -> None:
    created = _optimizer(optimizer_type="Adafactor", learning_rate=1e-4)
    options = OptimizerOptions(optimizer_type="Adafactor", learning_rate=1e-4, lr_scheduler="cosine")
    made = create(created, options, 10)
    assert made.name == "adafactor:0.0001"
    assert created.learning_rates() == {"unet": 1e-4}
    param = created.optimizer.param_groups[0]["params"][0]
    for _ in range(2):
        param.grad = torch.ones(2, 2)
        created.optimizer.step()
        made.scheduler.step()
    # min(0.01, 1 / sqrt(2)) times the weights' root mean square just before the step
    assert created.learning_rates()["unet"] == pytest.approx(0.01 * 0.99, rel=1e-3)
    assert all(isinstance(rate, float) for rate in made.scheduler.get_last_lr())


def test_schedule_free_leaves_the_rate_alone() -> None:
    created = _optimizer(optimizer_type="AdamWScheduleFree")
    options = OptimizerOptions(optimizer_type="AdamWScheduleFree", lr_scheduler="cosine", lr_warmup_steps=5)
    made = create(created, options, 10)
    assert _curve(made, 10) == [1.0] * 11 and [notice.code for notice in made.notices] == ["schedule_free"]
    assert create(_optimizer(optimizer_type="AdamWScheduleFree"), OptimizerOptions(), 10).notices == []


def test_a_warmup_longer_than_the_run_is_remarked() -> None:
    options = OptimizerOptions(learning_rate=1.0, lr_scheduler="cosine", lr_warmup_steps=50)
    assert [notice.code for notice in create(_optimizer(), options, 10).notices] == ["warmup_too_long"]
