"""Every optimizer takes steps on the CPU, and goes on bit for bit after its state was saved and read again."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from training_vectors import load

from sd_scripts.networks.base import ParameterGroup
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.training.fused import FusedBackward, check_fused
from sd_scripts.training.optimizer_table import ENTRIES, find
from sd_scripts.training.optimizers import CreatedOptimizer, create, parse_arguments

VECTORS = load("optimizers")
# Above 4096 numbers, so that the 8-bit optimizers really keep 8-bit state.
_SHAPES = ((96, 64), (64,), (4, 2, 3, 3))
_NAMES = [entry.name for entry in ENTRIES] + [case["name"] for case in VECTORS["custom"]]
_NAMES += ["pytorch_optimizer.Lion", "came_pytorch.CAME"]
_SCHEDULE_FREE = ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "prodigyplus.ProdigyPlusScheduleFree"]
_STEPS = 8  # RAdamScheduleFree only watches for the first few


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _params(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in _SHAPES]


def _groups(
    params: list[torch.nn.Parameter], first: float | None = None, second: float | None = None
) -> list[ParameterGroup]:
    return [ParameterGroup("unet", params[:2], first), ParameterGroup("textencoder", params[2:], second)]


def _step(created: CreatedOptimizer, params: list[torch.nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    torch.manual_seed(number)  # for optimizers that round at random
    for param in params:
        param.grad = 2 * param.detach() + 0.1 * torch.randn(param.shape, generator=generator)
    created.optimizer.step()
    created.optimizer.zero_grad(set_to_none=True)


def _rate(name: str) -> float:
    return 1.0 if find(name).rules == "one_rate" or "Prodigy" in name else 1e-2


@pytest.mark.parametrize("name", _NAMES)
def test_steps_and_resumes_bit_for_bit(name: str) -> None:
    options = OptimizerOptions(optimizer_type=name, learning_rate=_rate(name))
    params = _params()
    before = [param.detach().clone() for param in params]
    created = create(_groups(params), options)
    for number in range(_STEPS):
        _step(created, params, number)
    assert all(torch.isfinite(param).all() for param in params)
    assert any(not torch.equal(old, new) for old, new in zip(before, params))

    stream = io.BytesIO()
    weights = [param.detach().clone() for param in params]
    torch.save({"weights": weights, "optimizer": created.optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    again = _params(seed=9)
    resumed = create(_groups(again), options)
    resumed.optimizer.load_state_dict(saved["optimizer"])
    with torch.no_grad():
        for param, value in zip(again, saved["weights"]):
            param.copy_(value)
    for number in range(_STEPS, _STEPS + 3):
        _step(created, params, number)
        _step(resumed, again, number)
    assert all(torch.equal(one, two) for one, two in zip(params, again))


def test_the_8bit_optimizers_keep_8bit_state() -> None:
    params = _params()
    created = create(_groups(params), OptimizerOptions(optimizer_type="adamw8BIT", learning_rate=1e-3))
    _step(created, params, 0)
    assert created.optimizer.state[params[0]]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("case", VECTORS["optimizers"], ids=lambda case: case["name"])
def test_names_as_in_metadata(case: dict[str, Any]) -> None:
    created = create(_groups(_params()), OptimizerOptions(optimizer_type=case["name"].upper(), learning_rate=1.0))
    added = case.get("injected_when_absent", {})
    text = ",".join(f"{key}={value}" for key, value in added.items())
    assert created.label == case["ss_optimizer_prefix"] + (f"({text})" if text else "")
    for key, value in case.get("forced_kwargs", {}).items():
        assert created.optimizer.defaults.get(key, value) == value


@pytest.mark.parametrize("case", VECTORS["custom"], ids=lambda case: case["name"])
def test_classes_by_path(case: dict[str, Any]) -> None:
    created = create(_groups(_params()), OptimizerOptions(optimizer_type=case["name"], learning_rate=0.5))
    assert type(created.optimizer).__name__ == case["class"].rpartition(".")[2]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adam", "There is no optimizer 'adam'"),
        ("AdamW8bitt", "Did you mean AdamW8bit"),
        ("DAdaptFoo", "There is no optimizer"),
        ("foo8bit", "There is no optimizer"),
        ("LBFGS", "several times a step"),
        ("os.path.join", "--allow_plugins"),
        ("torch.optim.lr_scheduler", "not an optimizer class"),
        ("torch.nn.Linear", "not an optimizer class"),
        ("bitsandbytes.nowhere.Adam", "bitsandbytes.nowhere"),
    ],
)
def test_wrong_names_are_one_sentence(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        create(_groups(_params()), OptimizerOptions(optimizer_type=name))
    assert says in str(caught.value) and caught.value.key == "optimizer_type"


def test_a_missing_package_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is Python's own way to make an import fail as if the package were not there.
    monkeypatch.setitem(__import__("sys").modules, "lion_pytorch", None)
    with pytest.raises(UserError) as caught:
        create(_groups(_params()), OptimizerOptions(optimizer_type="Lion"))
    assert "pip install lion-pytorch" in str(caught.value)


def test_a_foreign_class_needs_permission(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_optimizer.py").write_text("from torch.optim import SGD\nclass Mine(SGD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = OptimizerOptions(optimizer_type="my_own_optimizer.Mine", learning_rate=0.1)
    with pytest.raises(UserError, match="allow_plugins"):
        create(_groups(_params()), options)
    assert create(_groups(_params()), options, allow_plugins=True).name == "my_own_optimizer.Mine"


@pytest.mark.parametrize(("item", "value"), VECTORS["arguments"].items())
def test_argument_parsing(item: str, value: dict[str, Any]) -> None:
    found = parse_arguments([item], "optimizer_args")
    assert {key: list(got) if isinstance(got, tuple) else got for key, got in found.items()} == value


@pytest.mark.parametrize("item", ["foo=bar", "a=b=c", "weight_decay", "=1", "x=__import__('os').getcwd()", "a b=1"])
def test_arguments_that_are_no_literals(item: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments([item], "optimizer_args")
    assert item in str(caught.value) and caught.value.key == "optimizer_args"


def test_spaces_around_the_equals_sign_are_forgiven() -> None:
    assert parse_arguments(["weight_decay = 0.1"], "optimizer_args") == {"weight_decay": 0.1}


def test_arguments_reach_the_optimizer() -> None:
    options = OptimizerOptions(optimizer_args=["betas=0.8,0.9", "weight_decay=0.5"], learning_rate=0.1)
    created = create(_groups(_params(), 0.01), options)
    assert [group["lr"] for group in created.optimizer.param_groups] == [0.01, 0.1]
    assert created.optimizer.defaults["betas"] == (0.8, 0.9)
    assert created.label == "torch.optim.adamw.AdamW(betas=(0.8, 0.9),weight_decay=0.5)"
    assert created.learning_rates() == {"unet": 0.01, "textencoder": 0.1}


@pytest.mark.parametrize(
    ("arguments", "says"), [("momentumm=1", "momentumm"), ("betas=(2,2)", "refuses"), ("lr=1", "'lr'")]
)
def test_arguments_that_do_not_fit(arguments: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        create(_groups(_params()), OptimizerOptions(optimizer_args=[arguments]))
    assert says in str(caught.value) and caught.value.key == "optimizer_args"


@pytest.mark.parametrize("case", VECTORS["adafactor"], ids=lambda case: case["args"])
def test_adafactor_rules(case: dict[str, Any]) -> None:
    options = OptimizerOptions(learning_rate=1.0, unet_lr=1.0, text_encoder_lr=[0.5], **case["in"])
    created = create(_groups(_params(), 0.5, 1.0), options)
    assert created.args == case["args"] and created.name == case["name"]
    assert [group["lr"] for group in created.optimizer.param_groups] == case["group_lrs"]
    assert created.relative_step == (case["lr"] is None)
    assert created.notices


def test_adafactor_says_what_is_unusual() -> None:
    options = OptimizerOptions(optimizer_type="adafactor", optimizer_args=["relative_step=False", "clip_threshold=2.0"])
    keys = [notice.key for notice in create(_groups(_params()), options).notices]
    assert keys == ["max_grad_norm", "lr_scheduler", "optimizer_args"]
    usual = OptimizerOptions(
        optimizer_type="adafactor",
        optimizer_args=["relative_step=False"],
        lr_scheduler="constant_with_warmup",
        max_grad_norm=0.0,
    )
    assert create(_groups(_params()), usual).notices == []


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptation", "dadaptadam", "prodigyopt.Prodigy"])
def test_one_rate_for_all_groups(name: str) -> None:
    params = _params()
    created = create(_groups(params, 1.0, 0.5), OptimizerOptions(optimizer_type=name, learning_rate=1.0))
    assert [group["lr"] for group in created.optimizer.param_groups] == [1.0, 1.0]
    assert [notice.code for notice in created.notices] == ["one_rate"]
    for number in range(2):
        _step(created, params, number)
    assert 0 < created.adapted_rates()["unet"] < 1


def test_a_low_rate_for_prodigy_is_remarked() -> None:
    created = create(_groups(_params()), OptimizerOptions(optimizer_type="Prodigy", learning_rate=1e-4))
    assert [notice.code for notice in created.notices] == ["low_rate"]
    assert create(_groups(_params()), OptimizerOptions(optimizer_type="Prodigy", learning_rate=1.0)).notices == []


@pytest.mark.parametrize("name", _SCHEDULE_FREE)
def test_schedule_free_switching_leaves_no_trace(name: str) -> None:
    finals = []
    for look in (False, True):
        params = _params()
        created = create(_groups(params), OptimizerOptions(optimizer_type=name, learning_rate=0.5))
        assert created.schedule_free and created.switches
        for number in range(_STEPS):
            _step(created, params, number)
            training = [param.detach().clone() for param in params]
            if look:
                with created.evaluating():
                    assert any(not torch.equal(one, two) for one, two in zip(training, params)) or number < 6
                assert all(torch.equal(one, two) for one, two in zip(training, params))
        finals.append([param.detach().clone() for param in params])
    assert all(torch.equal(one, two) for one, two in zip(*finals))


def test_evaluating_is_harmless_for_others() -> None:
    params = _params()
    created = create(_groups(params), OptimizerOptions())
    assert not created.switches and not created.schedule_free
    with created.evaluating():
        assert torch.equal(params[0], _params()[0])


def test_the_older_flags() -> None:
    assert create(_groups(_params()), OptimizerOptions(use_8bit_adam=True)).name.endswith("AdamW8bit")
    assert create(_groups(_params()), OptimizerOptions(use_lion_optimizer=True)).name.endswith("Lion")
    with pytest.raises(UserError, match="two optimizers"):
        create(_groups(_params()), OptimizerOptions(use_lion_optimizer=True, use_8bit_adam=True))
    with pytest.raises(UserError, match="Prodigy"):
        create(_groups(_params()), OptimizerOptions(use_8bit_adam=True, optimizer_type="Prodigy"))


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        create([ParameterGroup("unet", [], 1.0)], OptimizerOptions())


def test_what_a_plugin_asks_for_its_group_reaches_the_optimizer() -> None:
    params = _params()
    groups = [ParameterGroup("a", params[:1], 0.1, {"weight_decay": 0.5}), ParameterGroup("b", params[1:], 0.1)]
    made = create(groups, OptimizerOptions(optimizer_type="AdamW", optimizer_args=["weight_decay=0.2"])).optimizer
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.2]


def test_groups_of_one_name_are_told_apart() -> None:
    params = _params()
    groups = [ParameterGroup("unet", [param], None) for param in params]
    assert list(create(groups, OptimizerOptions(learning_rate=0.1)).learning_rates()) == ["unet", "unet_2", "unet_3"]


def test_fused_backward_equals_stepping_afterwards() -> None:
    arguments = ["relative_step=False", "scale_parameter=False"]
    options = OptimizerOptions(
        optimizer_type="Adafactor", optimizer_args=arguments, learning_rate=0.01, fused_backward_pass=True
    )
    plain, fused = _params(), _params()
    one, two = create(_groups(plain, 0.02), options), create(_groups(fused, 0.02), options)
    check_fused(options, two, 1, False)
    hooks = FusedBackward(two.optimizer, max_grad_norm=0.5)
    for _ in range(3):
        sum((param**2).sum() for param in plain).backward()
        for param in plain:
            torch.nn.utils.clip_grad_norm_([param], 0.5)
        one.optimizer.step()
        one.optimizer.zero_grad(set_to_none=True)
        sum((param**2).sum() for param in fused).backward()
        assert all(param.grad is None for param in fused)
        two.optimizer.step()
    assert all(torch.equal(left, right) for left, right in zip(plain, fused))
    hooks.remove()
    sum((param**2).sum() for param in fused).backward()
    assert fused[0].grad is not None


def test_fused_backward_leaves_a_weight_alone_whose_gradient_is_nan() -> None:
    options = OptimizerOptions(
        optimizer_type="Adafactor", optimizer_args=["relative_step=False"], learning_rate=0.01, fused_backward_pass=True
    )
    params = _params()
    before = [param.detach().clone() for param in params]
    fused = FusedBackward(create(_groups(params, 0.02), options).optimizer, 1.0)
    ((params[0] ** 2).sum() * float("nan") + sum((param**2).sum() for param in params[1:])).backward()
    assert fused.broken
    assert torch.equal(params[0], before[0])
    assert not torch.equal(params[1], before[1])
    assert params[0].grad is None


def test_fused_backward_limits() -> None:
    options = OptimizerOptions(fused_backward_pass=True)
    adamw = create(_groups(_params()), options)
    with pytest.raises(UserError, match="AdaFactor only"):
        check_fused(options, adamw, 1, False)
    adafactor = create(_groups(_params()), OptimizerOptions(optimizer_type="adafactor"))
    with pytest.raises(UserError, match="gradient_accumulation_steps 1, not 2"):
        check_fused(options, adafactor, 2, False)
    with pytest.raises(UserError, match="bf16"):
        check_fused(options, adafactor, 1, True)
    check_fused(OptimizerOptions(), adamw, 4, True)
    assert adafactor.relative_step
