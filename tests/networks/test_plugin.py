"""The plug: older and leaner networks than ours fit it, by what their signatures say."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sd_scripts.networks.plugin import Plugin, accepted, known_names, load_plugin, parse_network_args
from sd_scripts.schema.errors import UserError


class OldNetwork(nn.Module):
    """A network of 2023: two rates, groups without names, nothing optional."""

    def __init__(self, text_encoder: Any, unet: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder_was_list = isinstance(text_encoder, list)
        self.lora_te_a = nn.Linear(dim, dim)
        self.lora_unet_a = nn.Linear(dim, dim)

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool, apply_unet: bool) -> None:
        self.applied = (apply_text_encoder, apply_unet)

    def prepare_optimizer_params(self, text_encoder_lr: float | None, unet_lr: float | None) -> list[dict[str, Any]]:
        self.rates = (text_encoder_lr, unet_lr)
        first: dict[str, Any] = {"params": list(self.lora_te_a.parameters())}
        second = {"params": list(self.lora_unet_a.parameters()), "lr": unet_lr, "weight_decay": 0.5}
        return [first, second]

    def load_weights(self, file: str) -> str:
        return f"loaded {file}"

    def save_weights(self, file: str, dtype: torch.dtype | None, metadata: dict[str, str] | None) -> None:
        tensors = {key: value if dtype is None else value.to(dtype) for key, value in self.state_dict().items()}
        save_file(tensors, file, {**(metadata or {}), "sshs_model_hash": "0xwrong"})


def module_with(create: Any) -> ModuleType:
    module = ModuleType("old.network")
    module.create_network = create  # type: ignore[attr-defined]
    return module


def create_strict(
    multiplier: float,
    network_dim: int,
    network_alpha: float,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    flavour: str,
) -> OldNetwork:
    """No **kwargs: only what is named here may be passed."""
    assert flavour == "sweet"
    return OldNetwork(text_encoder, unet, network_dim)


def plugged(encoders: int = 1) -> Plugin:
    return Plugin.create(
        module_with(create_strict),
        "old.network",
        [nn.Identity() for _ in range(encoders)],
        nn.Identity(),
        dim=4,
        alpha=1,
        dropout=0.1,
        arguments={"flavour": "sweet", "unknown": "x"},
    )


def test_only_what_the_signature_names_is_passed() -> None:
    assert isinstance(plugged().module, OldNetwork)
    assert accepted(create_strict, {"flavour": "a", "other": "b"}) == {"flavour": "a"}
    assert accepted(lambda **anything: None, {"a": 1}) == {"a": 1}


def test_one_encoder_is_bare_and_several_are_a_list() -> None:
    assert not plugged(1).module.encoder_was_list  # type: ignore[union-attr]
    assert plugged(2).module.encoder_was_list  # type: ignore[union-attr]


def test_a_network_of_the_older_form_gets_two_rates_and_named_groups() -> None:
    plug = plugged()
    groups = plug.parameter_groups(1e-4, [5e-5], 1e-3)
    assert plug.module.rates == (5e-5, 1e-4)  # type: ignore[union-attr]
    assert [(group.name, group.lr) for group in groups] == [("textencoder", None), ("unet", 1e-4)]
    assert groups[1].extra == {"weight_decay": 0.5}
    frozen = plug.parameter_groups(0.0, [5e-5], 1e-3)
    assert [group.name for group in frozen] == ["textencoder"]
    assert len(plug.trainable_parameters()) == 2


def test_what_a_network_lacks_has_a_default() -> None:
    plug = plugged()
    plug.apply(True, False)
    plug.set_multiplier(torch.tensor([1.0, 0.5]))
    plug.call_if_there("on_epoch_start")
    assert plug.load(__file__).startswith("loaded")
    with pytest.raises(UserError, match="cannot limit its norms"):
        plug.limit_norms(1.0, torch.device("cpu"))
    with pytest.raises(UserError, match="cannot be merged"):
        plug.merge_into({}, 1.0, None, None)
    with pytest.raises(UserError, match="cannot take its ranks"):
        Plugin.from_weights(module_with(create_strict), "old.network", [nn.Identity()], nn.Identity(), __file__)


def test_a_plugin_s_file_gets_right_hashes_and_is_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a b.safetensors"
    plugged().save(path, torch.float16, {"ss_v2": "False"})
    with safe_open(str(path), framework="pt") as handle:
        notes = handle.metadata()
    assert len(notes["sshs_model_hash"]) == 64 and len(notes["sshs_legacy_hash"]) == 8
    broken = plugged()
    broken.module.save_weights = lambda *_: (_ for _ in ()).throw(OSError("disk full"))  # type: ignore[union-attr]
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        broken.save(path, None, None)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_network_without_the_needed_methods_is_refused() -> None:
    with pytest.raises(UserError, match="lacks apply_to"):
        Plugin(nn.Identity(), "old.network", [nn.Identity()], nn.Identity())
    with pytest.raises(UserError, match="made no network"):
        Plugin.create(
            module_with(lambda *_, **__: None),
            "old.network",
            [nn.Identity()],
            nn.Identity(),
            dim=1,
            alpha=1,
            dropout=None,
            arguments={},
        )


def test_network_args() -> None:
    assert parse_network_args(["a=1", "preset=C:\\x=y.toml"]) == {"a": "1", "preset": "C:\\x=y.toml"}
    with pytest.raises(UserError, match="key=value"):
        parse_network_args(["conv_dim"])


def test_names() -> None:
    assert known_names() == [
        "networks.lora",
        "networks.lora_fa",
        "networks.dylora",
        "networks.oft",
        "networks.loha",
        "networks.lokr",
        "lycoris.kohya",
    ]
    assert load_plugin("networks.lora").__name__ == "sd_scripts.networks.lora"
