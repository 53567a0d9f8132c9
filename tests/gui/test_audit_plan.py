"""The plan tells true sizes, looks where the trainer will look, and never outside the allowed folders."""

import json
import struct
from math import prod
from pathlib import Path

import pytest
from PIL import Image

from kohya_gui import checks, command, confinement, estimate, model_shapes
from kohya_gui.paths import Roots

UNET = "model.diffusion_model.input_blocks.1."
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0."
SHAPES = {
    UNET + "1.transformer_blocks.0.attn1.to_q.weight": (32, 32),
    UNET + "1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
    UNET + "1.transformer_blocks.0.ff.net.0.proj.weight": (256, 32),
    UNET + "1.proj_in.weight": (32, 32, 1, 1),
    UNET + "1.norm.weight": (32,),
    UNET + "0.in_layers.2.weight": (32, 16, 3, 3),
    UNET + "0.emb_layers.1.weight": (32, 128),
    "model.diffusion_model.out.2.weight": (4, 32, 3, 3),
    "first_stage_model.decoder.mid.attn_1.proj_out.weight": (96, 96, 1, 1),
    TEXT + "self_attn.q_proj.weight": (64, 64),
    TEXT + "mlp.fc1.weight": (256, 64),
    TEXT + "layer_norm1.weight": (64,),
}
# weights for each unit of rank: in the transformers, the text encoder, the blocks' 1x1 layers and 3x3 convolutions
UNET_RANK, TEXT_RANK, CONV_RANK, CONV = 64 + 800 + 288 + 64, 128 + 320, 160, 32 + 16 * 9


def both_ends(layers: list[model_shapes.Layer]) -> int:
    """Inputs of one output plus outputs of every layer."""
    return sum(layer.shape[0] + prod(layer.shape[1:]) for layer in layers)


def header(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of empty tensors that claim these shapes."""
    table = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    raw = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    return path


def test_the_size_follows_the_shapes_of_the_base_model(tmp_path: Path) -> None:
    model = header(tmp_path / "small.safetensors", SHAPES)
    values = {"LoRA_type": "Standard", "network_dim": 4, "pretrained_model_name_or_path": str(model)}
    assert estimate.file_size(values, "sd1") == 4 * 4 * (UNET_RANK + TEXT_RANK)
    assert estimate.file_size({**values, "network_train_unet_only": True}, "sd1") == 4 * 4 * UNET_RANK
    conv = {**values, "LoRA_type": "Kohya LoCon", "conv_dim": 2, "save_precision": "fp16"}
    whole = 4 * (UNET_RANK + TEXT_RANK) + 4 * CONV_RANK + 2 * CONV
    assert estimate.file_size(conv, "sd1") == 2 * whole


def test_open_clip_counts_question_key_and_value_apart_and_not_the_last_layer() -> None:
    block = "cond_stage_model.model.transformer.resblocks.{}."
    shapes = {
        block.format(number) + name: shape
        for number in (0, 1)
        for name, shape in (
            ("attn.in_proj_weight", (96, 32)),
            ("attn.out_proj.weight", (32, 32)),
            ("mlp.c_fc.weight", (128, 32)),
        )
    }
    assert both_ends(model_shapes.of_text_layers(shapes)) == 3 * 64 + 64 + 160


def test_both_text_encoders_of_sdxl_count_whole(tmp_path: Path) -> None:
    first = {"conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (128, 32)}
    second = {"conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": (96, 32)}
    unet = {name: shape for name, shape in SHAPES.items() if name.startswith("model.diffusion_model.")}
    file = header(tmp_path / "xl.safetensors", {**unet, **first, **second})
    layers = model_shapes.layers(str(file)) or []
    text = [layer for layer in layers if layer.role.startswith("text.")]
    assert both_ends(text) == 160 + 3 * 64 and len(layers) - len(text) == 7
    for folder, name in (("text_encoder", "layers.0.mlp.fc1.weight"), ("text_encoder_2", "layers.0.mlp.fc1.weight")):
        (tmp_path / "xl" / folder).mkdir(parents=True)
        header(tmp_path / "xl" / folder / "model.safetensors", {name: (128, 32)})
    (tmp_path / "xl" / "unet").mkdir()
    header(tmp_path / "xl" / "unet" / "model.safetensors", unet)
    layers = model_shapes.layers(str(tmp_path / "xl")) or []
    assert both_ends([layer for layer in layers if layer.role.startswith("text.")]) == 2 * 160


@pytest.mark.parametrize("text", ["user/model", "missing.safetensors", "torn.safetensors", "old.ckpt", ""])
def test_a_model_that_tells_no_shapes_counts_as_full_size(tmp_path: Path, text: str) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"12345")
    values = {"LoRA_type": "Standard", "network_dim": 8, "pretrained_model_name_or_path": str(tmp_path / text)}
    assert estimate.file_size(values, "sd1") == 4 * 8 * (423_936 + 165_888)


def test_relative_paths_start_where_the_trainer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    view = checks.plan("train_network", {"LoRA_type": "Standard", "train_data_dir": "tests/gui/none"})
    assert any(str(command.PROJECT / "tests/gui/none") in p.message for p in view.problems)
    keys = ("pretrained_model_name_or_path", "output_dir", "resume")
    given = {"pretrained_model_name_or_path": "user/model", "output_dir": "out", "resume": "~/x"}
    assert confinement.absolute(given, keys) == {**given, "output_dir": str(command.PROJECT / "out")}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_weights", ["/etc/passwd"]),
        ("pretrained_model_name_or_path", "../no-such-model"),
        ("vae", "../none.pt"),
        ("extra_accelerate_launch_args", "--log_dir /etc/x"),
        ("extra_accelerate_launch_args", "--deepspeed_config_file=/etc/x.yaml"),
        ("network_args", ["preset=/etc/passwd"]),
        ("network_args", ["conv_dim=4", "preset='../../../../../../../etc/passwd'"]),
        ("optimizer_args", ["file=\\\\\\\\host\\x"]),
        ("sample_prompt_text", "a cat --w 512\na dog --cn /etc/x.png --s 20"),
        ("sample_prompt_text", "a dog --s 20 --cn ../../../../../../../etc/x.png"),
        ("train_data_dir", "/etc"),
    ],
)
def test_no_field_reaches_outside_the_allowed_folders(tmp_path: Path, key: str, value: object) -> None:
    view = checks.plan("train_network", {"LoRA_type": "Standard", key: value}, Roots([tmp_path / "below"]))
    assert any(p.key == key and "outside" in p.message for p in view.problems), view.problems


def test_prompt_files_name_no_control_pictures_from_outside(tmp_path: Path) -> None:
    for name, text in (
        ("a.txt", "a cat --cn /etc/x.png"),
        ("b.toml", "[prompt]\ncontrolnet_image = '/etc/x.png'"),
        ("c.json", '[{"prompt": "a", "controlnet_image": "/etc/x.png"}]'),
        ("good.txt", f"a cat / dog --s 20 --cn {tmp_path}/x y.png --w 64\nno --cnx /etc"),
    ):
        (tmp_path / name).write_text(text)
        values = {"LoRA_type": "Standard", "sample_prompts": str(tmp_path / name), "network_args": ["conv_dim=4/2"]}
        said = checks.plan("train_network", values, Roots([tmp_path, command.PROJECT])).problems
        outside = {p.key for p in said if "outside" in p.message}
        assert outside == (set() if name == "good.txt" else {"sample_prompts"}), name


def test_links_among_the_pictures_show_nothing_from_outside(tmp_path: Path) -> None:
    strange, allowed = tmp_path / "strange", tmp_path / "allowed"
    for folder in (strange / "5_dog", allowed / "5_cat"):
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "a.png")
    (strange / "secret").write_text("hidden words")
    values = {
        "LoRA_type": "Standard",
        "train_data_dir": str(allowed),
        "resolution": "64,64",
        "caption_extension": ".txt",
    }
    plain = checks.plan("train_network", values, Roots([allowed]))
    assert plain.images == 1
    for link, target in (("5_cat/a.txt", strange / "secret"), ("5_dog", strange / "5_dog")):
        (allowed / link).symlink_to(target)
        view = checks.plan("train_network", values, Roots([allowed]))
        assert any(p.key == "train_data_dir" and "outside" in p.message and link in p.message for p in view.problems)
        assert not view.can_start
        (allowed / link).unlink()


def test_a_description_shows_no_pictures_from_outside(tmp_path: Path) -> None:
    strange, allowed = tmp_path / "strange", tmp_path / "allowed"
    for folder in (strange, allowed):
        folder.mkdir()
        Image.new("RGB", (64, 64)).save(folder / "a.png")
    text = "".join(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{f}'\n" for f in (strange, allowed))
    (allowed / "d.toml").write_text(text)
    values = {"LoRA_type": "Standard", "dataset_config": str(allowed / "d.toml")}
    view = checks.plan("train_network", values, Roots([allowed]))
    assert view.dataset is not None and [f.path for f in view.dataset.folders] == [str(allowed)]
    assert any(p.key == "dataset_config" and "outside" in p.message for p in view.problems)
