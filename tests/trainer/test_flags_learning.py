"""Every flag about the optimizer, the learning rate and the network changes the run as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from effects import FEW_BLOCKS, Probe, metadata, result, shows
from runs import Finished
from safetensors.torch import load_file

BOTH = {"network_train_unet_only": None}


def rates(finished: Finished, name: str = "unet") -> list[float]:
    return [event["lr"][name] for event in finished.of("step")]


def weights(finished: Finished) -> dict[str, torch.Tensor]:
    return load_file(str(result(finished)))


def ups(finished: Finished) -> float:
    """How far the run has moved what starts at zero."""
    return sum(float(value.abs().sum()) for name, value in weights(finished).items() if "lora_up" in name)


@shows("learning_rate", "unet_lr", "text_encoder_lr")
def test_rates_of_the_parts(probe: Probe) -> None:
    general = probe.trained(**BOTH, learning_rate=3e-4)
    assert general.of("start")[0]["trains"] == {"textencoder": 3e-4, "unet": 3e-4}
    own = probe.trained(**BOTH, unet_lr=2e-4, text_encoder_lr=[5e-5])
    assert own.of("start")[0]["trains"] == {"textencoder": 5e-5, "unet": 2e-4}
    assert ups(probe.trained(learning_rate=1e-4)) == pytest.approx(ups(probe.base()) / 10, rel=1e-3)


@shows("optimizer_type", "optimizer_args", "use_8bit_adam", "use_lion_optimizer")
def test_the_optimizer_is_the_one_asked_for(probe: Probe) -> None:
    def used(**options: Any) -> str:
        return metadata(result(probe.trained(**options)))["ss_optimizer"]

    assert used() == "torch.optim.adamw.AdamW"
    assert used(optimizer_type="SGDNesterov", optimizer_args=["momentum=0.5"]).startswith("torch.optim.sgd.SGD(")
    assert "momentum=0.5" in used(optimizer_type="SGDNesterov", optimizer_args=["momentum=0.5"])
    assert used(use_8bit_adam=True) == "bitsandbytes.optim.adamw.AdamW8bit"
    assert used(use_lion_optimizer=True) == "lion_pytorch.lion_pytorch.Lion"


@shows("max_grad_norm")
def test_gradients_are_clipped(probe: Probe) -> None:
    options = {"optimizer_type": "SGD", "learning_rate": 1.0, "max_grad_norm": 0}
    free = probe.trained(**options)
    norm = free.of("step")[0]["grad_norm"]
    clipped = probe.trained(**{**options, "max_grad_norm": norm / 4})
    assert clipped.of("step")[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert ups(clipped) == pytest.approx(ups(free) / 4, rel=1e-3)


# flag -> (its value, what else is given)
SCHEDULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lr_scheduler": ("cosine", {}),
    "lr_scheduler_type": ("ExponentialLR", {"lr_scheduler_args": ["gamma=0.5"]}),
    "lr_scheduler_args": (["gamma=0.25"], {"lr_scheduler_type": "ExponentialLR"}),
    "lr_warmup_steps": (3, {"lr_scheduler": "constant_with_warmup"}),
    "lr_decay_steps": (2, {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_min_lr_ratio": 0.1}),
    "lr_scheduler_num_cycles": (2, {"lr_scheduler": "cosine_with_restarts"}),
    "lr_scheduler_power": (3, {"lr_scheduler": "polynomial"}),
    "lr_scheduler_timescale": (50, {"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 1}),
    "lr_scheduler_min_lr_ratio": (0.5, {"lr_scheduler": "cosine_with_min_lr"}),
}


@shows(*SCHEDULES)
@pytest.mark.parametrize("flag", SCHEDULES)
def test_changes_the_rates(probe: Probe, flag: str) -> None:
    value, needed = SCHEDULES[flag]
    lesser = {"lr_scheduler_args": ["gamma=0.5"], "lr_scheduler_min_lr_ratio": 0.1, "lr_decay_steps": 1}
    without = {flag: lesser[flag]} if flag in lesser else {}
    if flag == "lr_scheduler_type":
        needed, without = {}, {}
        value, extra = "ExponentialLR", {"lr_scheduler_args": ["gamma=0.5"]}
    else:
        extra = {}
    before = rates(probe.trained(max_train_steps=4, **needed, **without))
    after = rates(probe.trained(max_train_steps=4, **needed, **extra, **{flag: value}))
    assert len(before) == len(after) == 4
    assert before != pytest.approx(after)


@shows("fused_backward_pass")
def test_a_fused_backward_keeps_no_gradients_and_learns_the_same(probe: Probe) -> None:
    options = {"optimizer_type": "AdaFactor", "optimizer_args": ["relative_step=False", "scale_parameter=False"]}
    plain = probe.trained(**options, lr_scheduler="constant", max_grad_norm=0, max_train_steps=3)
    fused = probe.trained(
        **options, lr_scheduler="constant", max_grad_norm=0, max_train_steps=3, fused_backward_pass=True
    )
    assert all(event["grad_norm"] for event in plain.of("step"))
    assert not any(event["grad_norm"] for event in fused.of("step"))
    assert fused.losses == pytest.approx(plain.losses, rel=1e-5)


@shows("network_dim", "network_alpha")
def test_rank_and_alpha_are_those_of_the_file(probe: Probe) -> None:
    made = weights(probe.trained(network_args=None, network_dim=3, network_alpha=2))
    down = next(value for name, value in made.items() if name.endswith("proj_in.lora_down.weight"))
    assert down.shape[0] == 3
    assert {float(value) for name, value in made.items() if name.endswith("alpha")} == {2.0}


@shows("network_args")
def test_network_arguments_choose_what_is_trained(probe: Probe) -> None:
    few, many = weights(probe.base()), weights(probe.trained(network_args=[FEW_BLOCKS, "conv_dim=2"]))
    assert len(few) < 60
    assert {name.partition(".")[0] for name in many} > {name.partition(".")[0] for name in few}


@shows("network_dropout")
def test_dropout_disturbs_training(probe: Probe) -> None:
    calm, dropped = probe.base(max_train_steps=2), probe.trained(max_train_steps=2, network_dropout=0.9)
    assert calm.losses[0] == dropped.losses[0], "the network does nothing yet"
    assert ups(calm) > 0 and ups(calm) != pytest.approx(ups(dropped), rel=1e-3)


@pytest.fixture(scope="module")
def strong(probe: Probe) -> Path:
    """A LoRA that has visibly learned something, of rank 2 in two blocks."""
    return result(probe.trained(learning_rate=0.3, max_train_steps=2, max_grad_norm=0, optimizer_type="AdamW"))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[name].float(), second[name].float()) for name in first
    )


@shows("network_weights", "dim_from_weights")
def test_a_run_goes_on_from_a_file(probe: Probe, strong: Path) -> None:
    still = {"learning_rate": 1e-12}
    assert not same(weights(probe.trained(**still)), load_file(str(strong)))
    assert same(weights(probe.trained(**still, network_weights=strong)), load_file(str(strong)))
    # Neither rank nor blocks are said here: both come from the file.
    sized = {"network_args": None, "network_dim": None, "dim_from_weights": True}
    assert same(weights(probe.trained(**still, **sized, network_weights=strong)), load_file(str(strong)))


@shows("base_weights", "base_weights_multiplier")
def test_networks_are_merged_into_the_base_first(probe: Probe, strong: Path) -> None:
    # Making the merged network draws random numbers, so the runs to compare all merge it, one of them times 0.
    without = probe.trained(base_weights=[strong], base_weights_multiplier=[0])
    merged = probe.trained(base_weights=[strong])
    assert abs(merged.losses[0] - without.losses[0]) > 1e-4
    assert merged.losses == probe.trained(base_weights=[strong], base_weights_multiplier=[1.0]).losses
    assert ups(merged) < ups(without) * 2, "what was merged is not part of the result"


@shows("scale_weight_norms")
def test_norms_are_limited_and_told(probe: Probe) -> None:
    run = probe.trained(scale_weight_norms=0.01, learning_rate=0.1, max_train_steps=2)
    norms = run.of("step")[-1]["max_norm"]
    assert norms["max_key_norm"] <= 0.0101 and norms["keys_scaled"] > 0
    assert probe.base().of("step")[0]["max_norm"] is None


@shows("network_train_unet_only", "network_train_text_encoder_only")
def test_only_one_part_is_trained(probe: Probe) -> None:
    def parts(**options: Any) -> set[str]:
        return {name.split("_")[1] for name in weights(probe.trained(**BOTH, **options))}

    assert parts() == {"te", "unet"}
    assert {name.split("_")[1] for name in weights(probe.base())} == {"unet"}
    assert parts(network_train_text_encoder_only=True, network_args=None) == {"te"}


@shows("network_module")
def test_an_unknown_network_needs_permission(probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_network.py").write_text("from sd_scripts.networks.lora import *\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refused = probe(network_module="their_network")
    assert refused.code == 2
    allowed = probe.trained(network_module="their_network", allow_plugins=True)
    assert metadata(result(allowed))["ss_network_module"] == "their_network"
