"""LoRA files renamed: there and back bit by bit, and the same effect in the program that the names are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_scripts.families.base import Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.methods.network import NetworkMethod
from sd_scripts.models.tiny import build_tiny
from sd_scripts.networks.changes import changed
from sd_scripts.networks.hashes import with_hashes
from sd_scripts.networks.names import layer_of, unet_layers
from sd_scripts.networks.netfile import open_network
from sd_scripts.schema.headers import read_safetensors_header
from sd_scripts.schema.network import NetworkOptions
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.tools import convert_lora

BASE = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
CROSS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
DATA = Path(__file__).parents[1] / "networks" / "data"
PROJ = "lora_unet_down_blocks_0_attentions_0_proj_in"
TWICE = ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in")
SDXL_Q = "input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def known_names(version: str) -> list[str]:
    """All names, of SDXL's every fifth."""
    if version == "sdxl":
        return list(json.loads((DATA / "lora_names_sdxl.json").read_text(encoding="utf-8")))[::5]
    return [row[0] for row in json.loads((DATA / "lora_modules.json").read_text(encoding="utf-8"))[version]]


def convert(source: Path, target: Path, to: str, *more: str) -> Path:
    argv = ["--model", str(source), "--save_to", str(target), "--to", to, "--overwrite", *more]
    assert convert_lora.main(argv) == 0
    return target


def notes(path: Path) -> dict[str, str]:
    return read_safetensors_header(path).metadata


def assert_same(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value.dtype, value.shape) == (right[name].dtype, right[name].shape), name
        assert torch.equal(value, right[name]), name
    assert notes(one) == notes(other)


def every_module(version: str) -> dict[str, Tensor]:
    """Modules of a version, tiny, of several ranks; alpha in two types, some 0, some missing; some DoRA."""
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(known_names(version)):
        rank = 1 + number % 3
        conv = name.endswith(("conv1", "conv2", "in_layers_2", "out_layers_3", "_op", "_0_conv", "_2_conv"))
        pointwise = version != "sdxl" and name.endswith(("proj_in", "proj_out"))
        sides = (3, 3) if conv else (1, 1) if pointwise else ()
        width = CROSS[version] if name.endswith("attn2_to_k") else 2
        tensors[f"{name}.lora_down.weight"] = torch.full((rank, width, *sides), number / 8).half()
        tensors[f"{name}.lora_up.weight"] = torch.full((3, rank, *((1, 1) if sides else ())), -number / 8).half()
        if number % 7:
            kind = torch.float16 if number % 2 else torch.float32
            tensors[f"{name}.alpha"] = torch.tensor(number % 5 / 2, dtype=kind)
        if number % 11 == 0:
            tensors[f"{name}.dora_scale"] = torch.rand(3, 1, *((1, 1) if sides else ()))
    return tensors


@pytest.mark.parametrize(
    "version, to", [("sd1", "peft"), ("sd2", "diffusers"), ("sdxl", "peft"), ("sdxl", "kohya_diffusers")]
)
def test_there_and_back_is_the_same_file(tmp_path: Path, version: str, to: str) -> None:
    tensors = every_module(version)
    own = {"ss_base_model_version": BASE[version], "modelspec.title": "猫"}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, with_hashes(tensors, own))
    there = convert(path, tmp_path / "b.safetensors", to)
    assert not set(load_file(there)) & {name for name in tensors if name.startswith("lora_unet_")}
    assert ("sshs_model_hash" in notes(there)) == to.startswith("kohya")
    assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya"))
    if version == "sd2":
        save_file(tensors, path)
        convert(path, there, to)
        assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya", "--family", version))


def test_sdxl_blocks_are_spelled_as_diffusers_does(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"lora_unet_{SDXL_Q}.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    save_file(tensors, path)
    found = load_file(convert(path, tmp_path / "b.safetensors", "kohya_diffusers"))
    assert set(found) == {
        f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.{part}.weight"
        for part in ("lora_up", "lora_down")
    }


# ---- the effect


LAYERS = {
    "sd1": (
        "down_blocks.0.attentions.0.proj_in",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.1.resnets.0.time_emb_proj",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.resnets.0.conv_shortcut",
    ),
    "sdxl": (
        "down_blocks.1.attentions.0.proj_in",
        "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
        "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.2.resnets.1.conv2",
    ),
}
TEXT_LAYERS = ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")


def base(version: str) -> Model:
    made = build_tiny(version, shallow=True)
    return Model(made.unet, made.text_encoders, made.tokenizers, made.vae, version, made.prediction_type)


def layer_at(model: Model, part: str, path: str) -> nn.Module:
    if part == "unet":
        return model.unet.get_submodule(path)
    encoder = model.text_encoders[part == "text_encoder_2"]
    return encoder.get_submodule(path if hasattr(encoder, "text_model") else path.removeprefix("text_model."))


def some_network(version: str, dora: bool) -> dict[str, Tensor]:
    """A LoRA on some layers of a small model, with ranks and alphas of several sizes."""
    random = torch.Generator().manual_seed(0)
    model = base(version)
    sgm = {path: original for original, path in unet_layers("sdxl").items()}
    places = [("unet", path) for path in LAYERS[version]]
    for number in range(len(model.text_encoders)):
        part = "text_encoder_2" if number else "text_encoder"
        places += [(part, f"text_model.encoder.layers.1.{layer}") for layer in TEXT_LAYERS]
    tensors: dict[str, Tensor] = {}
    for number, (part, path) in enumerate(places):
        weight = layer_at(model, part, path).weight
        rank, alpha = 2 + number % 2, (1.0, 2.5, 3.0)[number % 3]
        words = {"unet": "lora_unet", "text_encoder": "lora_te1" if version == "sdxl" else "lora_te"}
        spelled = sgm[path] if version == "sdxl" and part == "unet" else path
        name = f"{words.get(part, 'lora_te2')}_{spelled.replace('.', '_')}"
        down = torch.randn(rank, *weight.shape[1:], generator=random) / 4
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=random) / 4
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        if dora:
            lengths = weight.detach().flatten(1).norm(dim=1) * (1 + torch.rand(weight.shape[0], generator=random))
            tensors[f"{name}.dora_scale"] = lengths.reshape(-1, *[1] * (weight.dim() - 1))
    return tensors


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


# ---- what is told, and what is refused


def test_an_adapter_of_peft_is_read(tmp_path: Path) -> None:
    q = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"{q}.lora_A.weight": torch.ones(2, 4), f"{q}.lora_B.weight": torch.ones(4, 2)}, path)
    there = convert(path, tmp_path / "b.safetensors", "kohya")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert set(load_file(there)) == {f"{name}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert load_file(there)[f"{name}.alpha"] == 2
    assert_same(path, convert(there, tmp_path / "c.safetensors", "peft"))


def test_unusual_names_become_usual_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{PROJ}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}, path)
    usual = {f"{PROJ}.lora_{part}.weight" for part in ("up", "down")}
    assert set(load_file(convert(path, tmp_path / "b.safetensors", "kohya"))) == usual
    layer = "unet.down_blocks.0.attentions.0.proj_in"
    tensors = {f"{layer}.lora.{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(1.5).half()}, path)
    there = convert(path, tmp_path / "b.safetensors", "kohya")
    assert float(load_file(there)[f"{PROJ}.alpha"]) == 1.5
    assert_same(path, convert(there, tmp_path / "c.safetensors", "diffusers"))


def test_what_was_remembered_counts_for_the_same_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", False), path, {"ss_base_model_version": "sd_v1"})
    there = convert(path, tmp_path / "b.safetensors", "peft")
    tensors = load_file(there)
    tensors[next(iter(tensors))] += 1
    other = tmp_path / "c.safetensors"
    save_file(tensors, other, notes(there))
    back = convert(other, tmp_path / "d.safetensors", "kohya")
    assert "sshs_model_hash" in notes(back) and "convert_lora" in notes(back)


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": {"a": "x", "b": "x"}},
        {"metadata": {"a": 1}},
        {"alpha": "F32:99999,99999:1"},
        {"alpha": "F32::inf"},
        {"alpha": "X::"},
        {"alphas": {"a": 1}},
        {"shapes": {"a": ["x"]}},
        {"style": "other"},
        {"tensors": 1},
        None,
    ],
)
def test_a_note_that_somebody_changed_does_not_count(tmp_path: Path, change: dict[str, Any] | None) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{PROJ}.lora_{part}.weight": torch.ones(2, 2, 1, 1) for part in ("up", "down")}, path)
    there = convert(path, tmp_path / "b.safetensors", "peft")
    table = json.loads(notes(there)["convert_lora"])
    broken = "[" if change is None else json.dumps({**table, **change})
    save_file(load_file(there), there, {**notes(there), "convert_lora": broken})
    back = convert(there, tmp_path / "c.safetensors", "kohya")
    # as for a file that was never anything else: with alpha and fingerprints
    assert set(load_file(back)) == {f"{PROJ}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert "sshs_model_hash" in notes(back)


def test_number_formats(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", False), path, {"sshs_model_hash": "0", "sshs_legacy_hash": "0"})
    half = convert(path, tmp_path / "b.safetensors", "kohya", "--save_precision", "bf16")
    assert {value.dtype for value in load_file(half).values()} == {torch.bfloat16}
    assert notes(half)["sshs_model_hash"] == with_hashes(load_file(half), {})["sshs_model_hash"]


def test_lyco_kinds_are_renamed_where_there_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    parts = {part: torch.ones(2, 2) for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    save_file({f"{PROJ}.{part}": value for part, value in {**parts, "alpha": torch.tensor(1.0)}.items()}, path)
    there = convert(path, tmp_path / "b.safetensors", "peft")
    assert "unet.down_blocks.0.attentions.0.proj_in.hada_w1_a" in load_file(there)
    assert_same(path, convert(there, tmp_path / "c.safetensors", "kohya", "--family", "sd1"))


@pytest.mark.parametrize(
    "names, shape, to, words",
    [
        ([f"{PROJ}.diff"], (2, 2), "peft", "of kind full"),
        ([f"{PROJ}.lora_{part}.weight" for part in ("up", "down", "mid")], (2, 2, 1, 1), "diffusers", "lora_mid"),
        ([f"lora_unet_nowhere.lora_{part}.weight" for part in ("up", "down")], (2, 2), "peft", "no layer"),
        ([f"unet.mid_block.attentions.0.proj_in.lora_{part}.weight" for part in "AB"], (2, 2), "kohya", "which base"),
        ([f"{PROJ}.lora_{part}.weight" for part in ("up", "down")], (2, 2), "kohya", "already"),
        ([f"{PROJ}.lora_{part}.weight" for part in ("up", "down")], (2, 2), "kohya_diffusers", "not for SDXL"),
        ([f"{PROJ}.{part}" for part in ("lora_up.weight", "lora_down.weight", "dora_scale")], (1, 2), "peft", "column"),
        (["emb_params"], (2, 2), "peft", "no network file"),
        (
            [f"lora_unet_{name}.lora_{part}.weight" for name in TWICE for part in ("up", "down")],
            (2, 2),
            "peft",
            "belong to no module",
        ),
    ],
)
def test_what_cannot_be_renamed_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], shape: tuple[int, ...], to: str, words: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(shape) for name in names}, path)
    target = tmp_path / "b.safetensors"
    assert convert_lora.main(["--model", str(path), "--save_to", str(target), "--to", to]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not target.exists()


def test_files_in_the_way_and_other_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_network("sd1", False), path)
    for target, words in ((tmp_path / "b.pt", "end in .safetensors"), (path, "already")):
        assert convert_lora.main(["--model", str(path), "--save_to", str(target), "--to", "peft"]) == 2
        assert words in capsys.readouterr().err
    before = load_file(path)
    convert(path, path, "peft")
    convert(path, path, "kohya")
    assert all(torch.equal(value, before[name]) for name, value in load_file(path).items())


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
