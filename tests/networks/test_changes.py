"""Network files read module by module, and layers changed as the loaded networks would change them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd_scripts.networks.changes import Misfit, add_lora, changed, difference, factors, kind_of
from sd_scripts.networks.lora_module import LoRAModule
from sd_scripts.networks.netfile import open_network
from sd_scripts.schema.errors import UserError

NAMES = {
    "lora": ("lora_up.weight", "lora_down.weight", "alpha"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"),
    "lokr": ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"),
    "ia3": ("weight", "on_input"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"),
    "diag-oft": ("oft_blocks", "alpha"),
    "full": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
}


def lora(out: int, rank: int, *inner: int, alpha: float | None = None, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA module for a weight [out, *inner]."""
    generator = torch.Generator().manual_seed(seed)
    point = [1] * (len(inner) - 1)
    tensors = {
        "lora_up.weight": torch.randn(out, rank, *point, generator=generator),
        "lora_down.weight": torch.randn(rank, *inner, generator=generator),
    }
    return tensors if alpha is None else {**tensors, "alpha": torch.tensor(alpha)}


def product(tensors: dict[str, Tensor]) -> Tensor:
    """up x down in float64, written as a sum over the ranks."""
    up, down = tensors["lora_up.weight"].double().flatten(1), tensors["lora_down.weight"].double()
    return sum(torch.tensordot(up[:, rank], down[rank], dims=0) for rank in range(len(down)))  # type: ignore[return-value]


@pytest.mark.parametrize("inner", [(6,), (6, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize(("alpha", "multiplier"), [(1.0, 1.0), (8.0, 0.3), (None, -0.5), (0.0, 1.7), (2.0, 0.0)])
def test_lora_adds_its_product(inner: tuple[int, ...], alpha: float | None, multiplier: float) -> None:
    tensors = lora(5, 4, *inner, alpha=alpha)
    weight = torch.randn(5, *inner, dtype=torch.float64)
    before = weight.clone()
    bias = torch.randn(5, dtype=torch.float64)
    new, new_bias = changed(tensors, weight, bias, multiplier)
    expected = weight + multiplier * ((alpha or 4) / 4) * product(tensors)
    assert new.dtype == torch.float64 and torch.allclose(new, expected, rtol=0, atol=1e-12)
    assert new_bias is bias and torch.equal(weight, before)
    assert torch.allclose(difference(tensors, (5, *inner), multiplier).double(), expected - weight, atol=1e-5)


def test_linear_and_point_convolution_are_one() -> None:
    flat, deep = lora(5, 2, 6, alpha=1.0), lora(5, 2, 6, 1, 1, alpha=1.0)
    for tensors, shape in ((flat, (5, 6, 1, 1)), (deep, (5, 6))):
        new, _ = changed(tensors, torch.zeros(shape), None, 1.0)
        assert new.shape == shape and torch.allclose(new.view(5, 6).double(), product(flat) / 2, atol=1e-6)


def test_a_tucker_core_stands_between() -> None:
    tensors = {
        "lora_up.weight": torch.randn(5, 2, 1, 1),
        "lora_mid.weight": torch.randn(2, 2, 3, 3),
        "lora_down.weight": torch.randn(2, 4, 1, 1),
        "alpha": torch.tensor(3.0),
    }
    picture = torch.randn(1, 4, 6, 6)
    inner = torch.nn.functional.conv2d(picture, tensors["lora_down.weight"])
    inner = torch.nn.functional.conv2d(inner, tensors["lora_mid.weight"], padding=1)
    expected = torch.nn.functional.conv2d(inner, tensors["lora_up.weight"]) * 1.5
    weight = difference(tensors, (5, 4, 3, 3), 1.0)
    assert torch.allclose(torch.nn.functional.conv2d(picture, weight, padding=1), expected, atol=1e-5)
    up, down, scale = factors(tensors)
    assert (up.shape, down.shape, scale) == ((5, 2), (2, 4, 3, 3), 1.5)


def test_the_loaded_module_does_the_same() -> None:
    layer = nn.Linear(6, 5)
    module = LoRAModule("lora_unet_x", layer, lora_dim=2, alpha=0.5)
    nn.init.normal_(module.lora_up.weight)
    module.multiplier = 0.7
    module.apply_to()
    new, bias = changed(dict(module.state_dict()), layer.weight.detach(), layer.bias.detach(), 0.7)
    x = torch.randn(3, 6)
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, new, bias), atol=1e-6)


def test_rows_keep_their_trained_length() -> None:
    tensors = {**lora(5, 2, 6, alpha=1.0), "dora_scale": torch.rand(5, 1) + 0.5}
    weight = torch.randn(5, 6, dtype=torch.float64)
    whole = weight + 0.5 * product(tensors)
    new, _ = changed(tensors, weight, None, 1.0)
    expected = whole / whole.norm(dim=1, keepdim=True) * tensors["dora_scale"].double()
    assert torch.allclose(new, expected, atol=1e-10)
    with pytest.raises(Misfit, match="DoRA"):
        difference(tensors, (5, 6), 1.0)


def test_a_change_of_the_bias_beside_the_weight() -> None:
    tensors = {**lora(5, 2, 6), "diff_b": torch.ones(5)}
    _, bias = changed(tensors, torch.zeros(5, 6), torch.full((5,), 2.0), 0.5)
    _, made = changed(tensors, torch.zeros(5, 6), None, 0.5)
    assert bias is not None and bias.tolist() == [2.5] * 5 and made is not None and made.tolist() == [0.5] * 5


def test_in_place_is_the_same() -> None:
    tensors, weight = lora(5, 2, 6, alpha=1.0), torch.randn(5, 6)
    expected, _ = changed(tensors, weight, None, 0.3)
    assert add_lora(tensors, weight, 0.3) is weight and torch.equal(weight, expected)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(Misfit, match=r"shape \[5, 6\] for a weight of shape \[5, 7\]"):
        changed(lora(5, 2, 6), torch.zeros(5, 7), None, 1.0)
    broken = {**lora(5, 2, 6), "lora_up.weight": torch.zeros(5, 3)}
    with pytest.raises(Misfit, match="lora_up of shape"):
        changed(broken, torch.zeros(5, 6), None, 1.0)
    with pytest.raises(Misfit, match="has no lokr_w2"):
        changed({"lokr_w1": torch.zeros(2, 2)}, torch.zeros(4, 4), None, 1.0)
    with pytest.raises(Misfit, match="does not fit a weight of shape"):
        changed({"diff": torch.zeros(5, 6)}, torch.zeros(5, 7), None, 1.0)
    with pytest.raises(Misfit, match="depends on the model's own"):
        difference({"weight": torch.zeros(5), "on_input": torch.tensor(False)}, (5, 6), 1.0)


def test_kinds_are_told_by_names() -> None:
    for kind, names in NAMES.items():
        assert kind_of(names) == kind
    assert kind_of(("oft_blocks",), axes=4) == "boft"
    assert kind_of(("oft_blocks", "alpha"), module="oft_unet_x") == "oft"
    assert kind_of(("something",)) == ""
    with pytest.raises(Misfit, match=r"no lora_down\.weight"):
        kind_of(("lora_up.weight", "alpha"))


# ---- files


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return path


def named(module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{module}.{part}": value for part, value in tensors.items()}


def test_modules_of_a_file(tmp_path: Path) -> None:
    parts = lora(5, 2, 6, alpha=1.0)
    content = {**named("lora_te_text_model_encoder_layers_0_mlp_fc1", parts), **named("lora_unet_a", lora(3, 4, 2))}
    path = write(tmp_path / "a.safetensors", {**content, "bundle_emb.x.string_to_param.*": torch.zeros(2)}, {"n": "1"})
    file = open_network(path)
    assert list(file) == ["lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_a"]
    assert file.metadata == {"n": "1"} and file.others == ["bundle_emb.x.string_to_param.*"] and file.version == ""
    assert (file.rank("lora_unet_a"), file.alpha("lora_unet_a"), file.kinds()) == (4, 4.0, ["lora"])
    found = file.tensors("lora_te_text_model_encoder_layers_0_mlp_fc1")
    assert found.keys() == parts.keys() and all(torch.equal(found[part], parts[part]) for part in parts)
    file.forget()
    file.close()
    torch.save(content, tmp_path / "a.pt")
    assert list(open_network(tmp_path / "a.pt")) == list(file)


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "lora_unet_down_blocks_0_attentions_0_proj_in"),
        (
            "text_encoder.text_model.encoder.layers.1.mlp.fc2.lora_A.weight",
            "lora_te_text_model_encoder_layers_1_mlp_fc2",
        ),
    ],
)
def test_names_of_peft(tmp_path: Path, key: str, module: str) -> None:
    parts = lora(5, 4, 6)
    content = {key: parts["lora_down.weight"], key.replace("lora_A", "lora_B"): parts["lora_up.weight"]}
    plain = open_network(write(tmp_path / "a.safetensors", content))
    assert list(plain) == [module] and plain.alpha(module) == 4.0
    part = key.split(".")[0]
    settings = {f"{part}.lora_alpha": 6, f"{part}.use_rslora": True, f"{part}.r": 4}
    noted = write(tmp_path / "b.safetensors", content, {"lora_adapter_metadata": json.dumps(settings)})
    assert open_network(noted).alpha(module) == 12.0
    assert float(open_network(noted).tensors(module)["alpha"]) == 12.0


def test_other_prefixes_and_spellings(tmp_path: Path) -> None:
    sdxl = {**named("lora_te2_x", lora(5, 2, 6)), **named("lora_unet_mid_block_resnets_0_conv1", lora(5, 2, 6, 3, 3))}
    file = open_network(write(tmp_path / "a.safetensors", sdxl))
    assert file.version == "sdxl" and list(file) == ["lora_te2_x", "lora_unet_middle_block_0_in_layers_2"]
    assert file.stored_name("lora_unet_middle_block_0_in_layers_2", "lora_up.weight").startswith("lora_unet_mid_block")
    blocks = {"oft_blocks": torch.zeros(2, 3, 3), "alpha": torch.tensor(1.0)}
    names = {"oft_unet_x": "oft", "lycoris_down_blocks_0_x": "diag-oft"}
    content = {**named("oft_unet_x", blocks), **named("lycoris_down_blocks_0_x", blocks)}
    file = open_network(write(tmp_path / "b.safetensors", {name: value.clone() for name, value in content.items()}))
    assert {module: file.kind(module) for module in file} == {
        "lora_unet_x": names["oft_unet_x"],
        "lora_unet_down_blocks_0_x": names["lycoris_down_blocks_0_x"],
    }


@pytest.mark.parametrize(("width", "version"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_the_family_is_told_by_the_cross_attention(tmp_path: Path, width: int, version: str) -> None:
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    file = open_network(write(tmp_path / "a.safetensors", named(module, lora(3, 1, width))))
    assert file.version == version
    start = "lora_unet_input_blocks" if version == "sdxl" else "lora_unet_down_blocks"
    assert next(iter(file)).startswith(start)


def test_what_is_no_network_is_said(tmp_path: Path) -> None:
    model = write(tmp_path / "m.safetensors", {"model.diffusion_model.out.2.weight": torch.zeros(2)})
    half = write(tmp_path / "h.safetensors", {"lora_unet_a.lora_up.weight": torch.zeros(2, 2)})
    odd = write(tmp_path / "o.safetensors", {"lora_unet_a.strange": torch.zeros(2)})
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    for path, text in (
        (model, "no network file: none of its 1 tensors"),
        (half, r"lora_unet_a has lora_up\.weight but no lora_down\.weight"),
        (odd, r"lora_unet_a is of no known kind \(it has strange\)"),
        (tmp_path / "torn.safetensors", "cannot be read"),
        (tmp_path / "none.safetensors", "no file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=text) as error:
            open_network(path, "models")
        assert error.value.key == "models" and str(path) in str(error.value)
