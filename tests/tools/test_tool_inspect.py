"""Scripts that look into network files: how large they are, which words they change, and what is noted in them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sd_scripts.networks import check_lora_weights, lora_interrogator
from sd_scripts.networks.hashes import network_hashes, streamed_hashes, with_hashes
from sd_scripts.schema.headers import read_safetensors_header
from sd_scripts.tools import edit_metadata

SD = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_{}_{}"


def lora(name: str, out: int = 4, width: int = 6, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_up.weight": torch.randn(out, rank, generator=random),
        f"{name}.lora_down.weight": torch.randn(rank, width, generator=random),
        f"{name}.alpha": torch.tensor(1.0),
    }


def checked(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> dict[str, Any]:
    path, table = tmp_path / "a.safetensors", tmp_path / "table.json"
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata)
    assert check_lora_weights.main([str(path), "--json", str(table), "--overwrite"]) == 0
    found: dict[str, Any] = json.loads(table.read_text(encoding="utf-8"))
    return found


# ---- how large


def test_sizes_are_those_of_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = lora(SD) | lora(TEXT.format(3, "mlp_fc1"), seed=1)
    found = checked(tmp_path, tensors, {"ss_base_model_version": "sd_v1"})
    said = capsys.readouterr().out
    assert "number of LoRA modules: 2" in said and ".alpha" not in said
    up, down = tensors[f"{SD}.lora_up.weight"], tensors[f"{SD}.lora_down.weight"]
    line = next(line for line in said.splitlines() if line.startswith(f"{SD}.lora_up.weight"))
    numbers = [float(number) for number in line.split(",")[2:]]
    assert numbers == pytest.approx([float(up.abs().mean()), float(up.abs().min()), float(up.abs().max())], rel=1e-5)
    assert line.split(",")[1] == "(4-2)"
    modules = {module["name"]: module for module in found["modules"]}
    module = modules[SD]
    assert (module["block"], module["kind"], module["rank"]) == ("IN04", "lora", 2)
    assert (module["alpha"], module["strength"], module["not_finite"]) == (1.0, 0.5, 0)
    assert module["norm"] == pytest.approx(float(torch.linalg.matrix_norm(up @ down / 2)), rel=1e-6)
    assert module["up_mean"] == pytest.approx(float(up.abs().mean()))
    assert module["down_mean"] == pytest.approx(float(down.abs().mean()))
    assert [block["name"] for block in found["blocks"]] == ["text encoder layer 03", "IN04"]
    assert found["metadata"] == {"ss_base_model_version": "sd_v1"} and found["problems"] == []
    assert check_lora_weights.main([str(tmp_path / "a.safetensors"), "-s"]) == 0
    assert f"{SD}.alpha,()" in capsys.readouterr().out


def test_norms_add_up_by_block_in_the_order_of_the_model(tmp_path: Path) -> None:
    names = [
        "lora_unet_output_blocks_2_1_proj_in",
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_middle_block_1_proj_in",
        "lora_te2_text_model_encoder_layers_30_mlp_fc1",
        "lora_te1_text_model_encoder_layers_2_mlp_fc1",
        "lora_unet_input_blocks_4_1_proj_out",
    ]
    found = checked(tmp_path, {key: value for n, name in enumerate(names) for key, value in lora(name, seed=n).items()})
    norms = {module["name"]: module["norm"] for module in found["modules"]}
    blocks = {block["name"]: (block["norm"], block["modules"]) for block in found["blocks"]}
    expected = ["text encoder 1 layer 02", "text encoder 2 layer 30", "IN04", "MID01", "OUT02"]
    assert list(blocks) == expected
    together = (norms[names[1]] ** 2 + norms[names[5]] ** 2) ** 0.5
    assert blocks["IN04"] == (pytest.approx(together), 2)


def test_kinds_of_lycoris_are_measured_where_the_model_has_no_say(tmp_path: Path) -> None:
    one, two = torch.randn(4, 2), torch.randn(2, 6)
    small, large = torch.randn(2, 2), torch.randn(3, 5)
    names = [SD.replace("to_q", part) for part in ("to_q", "to_k", "to_v", "to_out_0")]
    found = checked(
        tmp_path,
        {f"{names[0]}.{part}": value for part, value in zip(("hada_w1_a", "hada_w1_b"), (one, two))}
        | {f"{names[0]}.{part}": value for part, value in zip(("hada_w2_a", "hada_w2_b"), (one, two))}
        | {f"{names[0]}.alpha": torch.tensor(3.0)}
        | {f"{names[1]}.lokr_w1": small, f"{names[1]}.lokr_w2": large}
        | {f"{names[2]}.diff": one}
        | {f"{names[3]}.{part}.weight": torch.randn(2, 2) for part in ("a1", "a2", "b1", "b2")},
    )
    by_kind = {module["kind"]: module for module in found["modules"]}
    assert by_kind["loha"]["norm"] == pytest.approx(float(torch.linalg.norm((one @ two) ** 2 * 1.5)), rel=1e-5)
    assert (by_kind["loha"]["rank"], by_kind["loha"]["strength"]) == (2, 1.5)
    assert by_kind["lokr"]["norm"] == pytest.approx(float(torch.linalg.norm(torch.kron(small, large))), rel=1e-5)
    assert by_kind["full"]["norm"] == pytest.approx(float(torch.linalg.norm(one)), rel=1e-5)
    assert by_kind["glora"]["norm"] is None and by_kind["glora"]["rank"] == 2
    assert found["problems"] == [] and set(found["kind"].split(", ")) == set(by_kind)


def test_what_is_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [SD.replace("to_q", part) for part in ("to_q", "to_k", "to_v")]
    tensors = {key: value for name in names for key, value in lora(name).items()}
    tensors[f"{names[0]}.lora_up.weight"][0] = torch.tensor([float("nan"), float("inf")])
    tensors[f"{names[1]}.lora_up.weight"].zero_()
    tensors[f"{names[2]}.lora_up.weight"] = torch.ones(4, 3)
    found = checked(tmp_path, tensors | {"stray": torch.ones(1)})
    said = " ".join(found["problems"])
    for words in ("2 numbers that are not finite", "without any effect", "lora_up of shape [4, 3]", "stray"):
        assert words in said, words
    modules = {module["name"]: module for module in found["modules"]}
    assert [modules[name]["norm"] for name in names] == [None, 0.0, None]
    assert [modules[name]["not_finite"] for name in names] == [2, 0, 0]
    assert "4 problems" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"lora_up.weight": (2, 2), "lora_down.weight": (2, 2), "alpha": (2,)}, "alpha has the shape [2]"),
        ({"lora_up.weight": (2, 2), "lora_down.weight": ()}, "lora_down.weight has the shape []"),
        ({"lora_up.weight": (2, 0), "lora_down.weight": (0, 2)}, "which no network has"),
        ({"lokr_w1_a": (2, 2), "lokr_w2": (2, 2)}, "has no lokr_w1"),
        ({"hada_w1_a": (2,), "hada_w1_b": (2, 2), "hada_w2_a": (2, 2), "hada_w2_b": (2, 2)}, "shape [2]"),
    ],
)
def test_shapes_of_no_network_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: dict[str, tuple[int, ...]], words: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"{SD}.{part}": torch.ones(shape) for part, shape in parts.items()}, path)
    assert check_lora_weights.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_table_in_the_way_and_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path)
    for argv, words in (([str(path)], "no network file"), ([str(path), "--json", str(path)], "already")):
        assert check_lora_weights.main(argv) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


# ---- which words

WORDS = ("cat", "sks", "dog", "astronaut")


@torch.no_grad()
def expected_sizes(folder: Path, changes: dict[str, Tensor], sdxl: bool) -> dict[str, float]:
    """How much each word's hidden states move, computed with weights that were added to by hand."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    rows = torch.tensor([tokenizer(word).input_ids for word in WORDS])
    moved = []
    for part, loader in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if part not in changes:
            continue
        states = []
        for change in (torch.zeros(()), changes[part]):
            encoder = loader.from_pretrained(folder / part).eval()
            layer = getattr(encoder, "text_model", encoder).encoder.layers[0].mlp.fc2
            layer.weight.add_(change)
            found = encoder(rows, output_hidden_states=True)
            states.append(found.hidden_states[-2] if sdxl else found.last_hidden_state)
        moved.append((states[0] - states[1]).abs())
    sizes = torch.cat(moved, dim=-1).mean(dim=(1, 2))
    return dict(zip(WORDS, sizes.tolist()))


@pytest.mark.parametrize("version", ["sd1", "sdxl"])
def test_the_most_changed_words_come_first(
    version: str, shallow_sd1: Path, shallow_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shallow_sdxl if version == "sdxl" else shallow_sd1
    widths = {"text_encoder": 32, "text_encoder_2": 64} if version == "sdxl" else {"text_encoder": 64}
    names = {"text_encoder": "lora_te1" if version == "sdxl" else "lora_te", "text_encoder_2": "lora_te2"}
    tensors, changes = {}, {}
    for part, width in widths.items():
        made = lora(f"{names[part]}_text_model_encoder_layers_0_mlp_fc2", width, width * 4, seed=width)
        tensors |= made
        up, down, _ = made.values()
        changes[part] = up @ down / 2
    save_file(tensors, tmp_path / "a.safetensors")
    argv = ["--sd_model", str(folder), "--model", str(tmp_path / "a.safetensors"), "--batch_size", "3"]
    assert lora_interrogator.main([*argv, "--words", *WORDS]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    found = {line.split("]:")[1].split()[1]: float(line.split()[-1]) for line in lines}
    expected = expected_sizes(folder, changes, version == "sdxl")
    assert found == pytest.approx(expected, abs=2e-5) and min(found.values()) > 0.01
    assert list(found) == sorted(expected, key=lambda word: -expected[word])


def test_who_cannot_be_interrogated(shallow_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    model = ["--sd_model", str(shallow_sd1), "--model", str(path)]
    text = TEXT.format(0, "mlp_fc1")
    for tensors, more, words in (
        (lora(SD), [], "no part for the text encoder"),
        (lora(text, 256, 65), [], "another kind of base model"),
        (lora(text, 256, 64), ["--clip_skip", "13"], "there are 12 layers"),
        ({key: value * float("nan") for key, value in lora(text, 256, 64).items()}, [], "not finite"),
    ):
        save_file(tensors, path)
        assert lora_interrogator.main([*model, *more, "--words", "cat"]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert lora_interrogator.main(["--model", str(path)]) == 2


# ---- what is noted


def big_file(path: Path, metadata: dict[str, str]) -> dict[str, Tensor]:
    """A file larger than where the short fingerprint begins, with its fingerprints."""
    tensors = {"w": torch.arange(400_000).float(), "a": torch.ones(3, dtype=torch.float16)}
    save_file(tensors, path, with_hashes(tensors, metadata))
    return tensors


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def edit(path: Path, *more: str) -> dict[str, str]:
    assert edit_metadata.main(["--model", str(path), "--overwrite", *more]) == 0
    return read_safetensors_header(path).metadata


def test_fingerprints_of_a_stream_are_the_known_ones() -> None:
    tensors = {"w": torch.arange(400_000).float()}
    entries = {"w": (torch.float32, (400_000,))}
    for metadata, legacy in (
        ({}, "3452ab51"),
        ({"modelspec.title": "x"}, "3452ab51"),
        ({"ss_v2": "False"}, "1fcc6e8a"),
    ):
        found = streamed_hashes(entries, lambda name: memoryview(tensors[name].view(torch.uint8).numpy()), metadata)
        assert found == ("1401776bfa4406b77cb4aa8e4ac23161797edfbe16e0d9be94e4afadda448a23", legacy)
    mixed = {"b": torch.randn(70_000), "a": torch.randn(300_000).half(), "z": torch.randn(300_000)}
    for metadata in ({"ss_tags": "ü" * 700_000, "x": "y"}, {}):
        found = streamed_hashes(
            {name: (value.dtype, value.shape) for name, value in mixed.items()},
            lambda name: memoryview(mixed[name].view(torch.uint8).numpy()),
            metadata,
        )
        assert found == network_hashes(mixed, metadata)


def test_notes_change_and_tensors_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a ü.safetensors"
    tensors = big_file(path, {"ss_v2": "False", "ss_old": "1", "modelspec.title": "x"})
    before, names = data_of(path), list(read_safetensors_header(path).shapes)
    found = edit(path, "--set", "modelspec.title=eine = 猫", "empty=", "--remove", "ss_old")
    assert data_of(path) == before and list(read_safetensors_header(path).shapes) == names
    left = {key: text for key, text in found.items() if not key.startswith("sshs_")}
    assert left == {"ss_v2": "False", "modelspec.title": "eine = 猫", "empty": ""}
    assert found == with_hashes(tensors, left)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(path).items())


def test_fingerprints_stay_as_they_are_where_nothing_they_cover_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2)}, path, {"sshs_legacy_hash": "by another program", "ss_a": "1"})
    assert edit(path, "--set", "modelspec.title=x")["sshs_legacy_hash"] == "by another program"
    assert edit(path, "--set", "ss_a=2")["sshs_legacy_hash"] == "e3b0c442"
    assert "sshs_legacy_hash" not in edit(path, "--clear", "--set", "ss_a=3")


def test_notes_come_from_a_file(tmp_path: Path) -> None:
    path, notes = tmp_path / "a.safetensors", tmp_path / "n.json"
    save_file({"w": torch.ones(2)}, path, {"a": "1", "b": "2"})
    notes.write_text(json.dumps({"a": None, "c": {"x": ["ü"]}, "d": "text"}), encoding="utf-8")
    assert edit(path, "--json", str(notes)) == {"b": "2", "c": '{"x": ["ü"]}', "d": "text"}
    assert edit(path, "--clear", "--json", str(notes)) == {"c": '{"x": ["ü"]}', "d": "text"}
    assert edit(path, "--clear") == {}
    assert data_of(path) == torch.ones(2).numpy().tobytes()


def test_a_picture_is_made_small(tmp_path: Path) -> None:
    path, picture = tmp_path / "a.safetensors", tmp_path / "p.png"
    save_file({"w": torch.ones(2)}, path)
    Image.new("RGBA", (900, 450), (200, 0, 0, 255)).save(picture)
    url = edit(path, "--thumbnail", str(picture))["modelspec.thumbnail"]
    start = "data:image/jpeg;base64,"
    assert url.startswith(start)
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix(start))))
    assert image.size == (256, 128) and image.format == "JPEG"


def test_edits_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.ones(2)}, path, {"a": "1"})
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    (tmp_path / "x.ckpt").write_bytes(b"x" * 100)
    before = path.read_bytes()
    for argv, words in (
        (["--model", path, "--set", "a=2"], "already"),
        (["--model", path, "--save_to", tmp_path / "b.pt", "--set", "a=2"], "end in .safetensors"),
        (["--model", path, "--save_to", other], "nothing to change"),
        (["--model", path, "--save_to", other, "--set", "a"], "name=text"),
        (["--model", path, "--save_to", other, "--remove", "none"], "no note 'none'"),
        (["--model", path, "--save_to", other, "--json", tmp_path / "list.json"], "no object"),
        (["--model", path, "--save_to", other, "--thumbnail", tmp_path / "list.json"], "no picture"),
        (["--model", path, "--save_to", other, "--set", "a=\ud800"], "no text"),
        (["--model", tmp_path / "x.ckpt", "--save_to", other, "--clear"], "cannot be read"),
        (["--model", tmp_path / "none.safetensors", "--save_to", other, "--clear"], "none.safetensors"),
    ):
        assert edit_metadata.main([str(item) for item in argv]) == 2, words
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
        assert not other.exists() and path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_job_can_take_an_edit_back(tmp_path: Path) -> None:
    path, job = tmp_path / "a.safetensors", tmp_path / "job"
    save_file({"w": torch.ones(2)}, path, {"a": "1"})
    before = path.read_bytes()
    edit(path, "--set", "a=2", "--job_dir", str(job))
    undo = [json.loads(line) for line in (job / "undo.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (job / "kept" / undo[0]["kept"]).read_bytes() == before
    events = [json.loads(line) for line in (job / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events[-1]["status"] == "done" and "1 note changed" in events[-1]["reason"]
