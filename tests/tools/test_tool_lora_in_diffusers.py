"""LoRA files renamed have the same effect in the program that the names are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from convert_kit import assert_same, base, convert, layer_at, notes, some_network
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_scripts.families.base import Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.methods.network import NetworkMethod
from sd_scripts.networks.changes import changed
from sd_scripts.networks.names import layer_of
from sd_scripts.networks.netfile import open_network
from sd_scripts.schema.network import NetworkOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.tools import convert_lora


@torch.no_grad()
def with_changes(version: str, path: Path) -> Model:
    """The model with a file's effect computed into its weights, layer by layer."""
    model, file = base(version), open_network(path)
    for module in file:
        place = layer_of(module)
        assert place is not None
        layer: Any = layer_at(model, *place)
        weight, _ = changed(file.tensors(module), layer.weight.double(), None, 1.0)
        layer.weight.copy_(weight)
    return model


@torch.no_grad()
def outputs(model: Model) -> list[Tensor]:
    """Hidden states of the text encoders, and the U-Net's output for fixed inputs."""
    ids = torch.tensor([[49406, 320, 2368, 49407]])
    hidden = [encoder(ids, output_hidden_states=True).hidden_states[-1] for encoder in model.text_encoders]
    random = torch.Generator().manual_seed(1)
    added = None
    if model.version == "sdxl":
        pooled = model.text_encoders[1].config.projection_dim
        added = {"text_embeds": torch.randn(1, pooled, generator=random), "time_ids": torch.full((1, 6), 64.0)}
    context = torch.randn(1, 4, model.unet.config.cross_attention_dim, generator=random)
    latents = torch.randn(1, 4, 8, 8, generator=random)
    return [*hidden, model.unet(latents, 500, context, added_cond_kwargs=added).sample]


def in_diffusers(version: str, path: Path) -> Model:
    """The model with a file loaded by diffusers."""
    model = base(version)
    parts: dict[str, Any] = {"vae": model.vae, "unet": model.unet, "scheduler": DDIMScheduler()}
    if version == "sdxl":
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        pipe: Any = StableDiffusionXLPipeline(**parts, **dict(zip(names, [*model.text_encoders, *model.tokenizers])))
    else:
        parts |= {"text_encoder": model.text_encoders[0], "tokenizer": model.tokenizers[0]}
        pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    return model


@pytest.mark.parametrize(
    "version, to, dora",
    [("sd1", "diffusers", False), ("sd1", "peft", True), ("sdxl", "peft", False)],
)
def test_diffusers_does_with_the_result_what_the_file_does(tmp_path: Path, version: str, to: str, dora: bool) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network(version, dora), path)
    there = convert(path, tmp_path / "b.safetensors", to)
    plain = outputs(base(version))
    wanted = outputs(with_changes(version, path))
    found = outputs(in_diffusers(version, there))
    for before, expected, value in zip(plain, wanted, found, strict=True):
        assert (expected - before).abs().max() > 1e-2
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya", "--family", version))


def test_a_lora_that_diffusers_saved_works_in_our_trainer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = base("sd1")
    model.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["attn1.to_q", "to_out.0", "ff.net.2"])
    )
    text = model.text_encoders[0]
    text.add_adapter(LoraConfig(r=3, lora_alpha=1, init_lora_weights=False, target_modules=["q_proj", "fc1"]))
    wanted = outputs(model)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        convert_state_dict_to_diffusers(get_peft_model_state_dict(model.unet)),
        convert_state_dict_to_diffusers(get_peft_model_state_dict(text)),
        **_collate_lora_metadata({"unet": model.unet, "text_encoder": text}),
    )
    saved = tmp_path / "pytorch_lora_weights.safetensors"
    ours = convert(saved, tmp_path / "a.safetensors", "kohya", "--family", "sd1")
    assert notes(ours)["ss_network_module"] == "networks.lora" and "sshs_model_hash" in notes(ours)

    trainer = base("sd1")
    options = NetworkOptions(network_weights=str(ours), dim_from_weights=True)
    method = NetworkMethod(options, OptimizerOptions())
    method.attach(trainer, StableDiffusion(), gradient_checkpointing=False, weight_dtype=torch.float32)
    for before, expected, value in zip(outputs(base("sd1")), wanted, outputs(trainer), strict=True):
        assert (expected - before).abs().max() > 1e-3
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    assert_same(saved, convert(ours, tmp_path / "b.safetensors", "diffusers"))


# ---- PEFT's own folders


def wrapped(model: Model, folder: Path) -> list[Tensor]:
    """The outputs of a model whose parts have PEFT's folders on them."""
    model.unet = PeftModel.from_pretrained(model.unet, folder / "unet").base_model.model
    model.text_encoders[0] = PeftModel.from_pretrained(model.text_encoders[0], folder / "text_encoder").base_model.model
    return outputs(model)


def test_folders_of_peft_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", True), path, {"ss_base_model_version": "sd_v1"})
    folder = convert(path, tmp_path / "peft", "peft")
    for expected, value in zip(outputs(with_changes("sd1", path)), wrapped(base("sd1"), folder), strict=True):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    assert_same(path, convert(folder, tmp_path / "b.safetensors", "kohya"))
    assert convert_lora.main(["--model", str(path), "--save_to", str(folder), "--to", "peft"]) == 2
    assert convert_lora.main(["--model", str(tmp_path), "--save_to", str(path), "--to", "kohya", "--overwrite"]) == 2


def test_what_peft_saved_has_its_alphas(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = base("sd1")
    settings = {"r": 4, "lora_alpha": 2, "init_lora_weights": False, "use_rslora": True}
    unet = get_peft_model(model.unet, LoraConfig(target_modules=["to_q"], alpha_pattern={"attn2.to_q": 8}, **settings))
    unet.save_pretrained(tmp_path / "x")
    ours = convert(tmp_path / "x" / "adapter_model.safetensors", tmp_path / "a.safetensors", "kohya", "--family", "sd1")
    alphas = {name: float(value) for name, value in load_file(ours).items() if name.endswith("alpha")}
    assert set(alphas.values()) == {4.0, 16.0}
    assert {value for name, value in alphas.items() if "attn2" in name} == {16.0}
    wanted, found = outputs(model)[-1], outputs(with_changes("sd1", ours))[-1]
    assert (wanted - found).abs().max() < 1e-5 * wanted.abs().max().clamp(min=1)
