"""Files of embeddings: written with the known names, read in every form, understood by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from embedding_kit import VECTORS, attach, conditioning, method, model, options, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_scripts.families.base import Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.methods.embedding import EmbeddingMethod, ExtendedEmbedding
from sd_scripts.methods.xti import XtiMethod
from sd_scripts.models.build import text_core
from sd_scripts.networks.embedding_file import LAYERS, PAIR, SINGLE, read_embedding
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions

WIDTHS = {"sd1": [768], "sd2": [1024], "sdxl": [768, 1280], "xti": [768]}


def wide_model(kind: str) -> Model:
    """A model with token tables of the real width, and nothing else of the real size."""
    base = model("sd1" if kind == "xti" else kind)
    for encoder, width in zip(base.text_encoders, WIDTHS[kind]):
        text_core(encoder).embeddings.token_embedding = nn.Embedding(49408, width)
    return base


def wide_method(kind: str, vectors: int) -> Any:
    given = options(num_vectors_per_token=vectors)
    if kind == "xti":
        made: Any = XtiMethod(given, OptimizerOptions(), model=ModelOptions())
    else:
        made = EmbeddingMethod(given, OptimizerOptions())
    attach(wide_model(kind), made)
    for rows in made.module.parameters():
        rows.data.copy_(torch.arange(len(rows), dtype=torch.float32)[:, None].expand_as(rows))
    return made


@pytest.mark.parametrize("case", VECTORS["saved"], ids=lambda case: f"{case['in']['kind']} {case['in']['ext']}")
def test_files_hold_what_sd_scripts_writes(case: dict[str, Any], tmp_path: Path) -> None:
    given, expected = case["in"], case["out"]
    dtype = None if given["save_dtype"] == "None" else torch.float16
    made = wide_method(given["kind"], given["vectors"])
    path = tmp_path / f"word{given['ext']}"
    made.save(path, dtype, {"modelspec.title": "word"})
    if given["ext"] == ".safetensors":
        tensors = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            assert file.metadata() == {"modelspec.title": "word"}
    else:
        tensors = torch.load(path, weights_only=True)
    shown = {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in tensors.items()}
    assert shown == expected["tensors"]
    names = {"sdxl": PAIR, "xti": LAYERS}.get(given["kind"], (SINGLE,))
    read = read_embedding(path, names)
    if "load_shapes" in expected:
        assert [list(value.shape) for value in read.values()] == expected["load_shapes"]
    for layer, rows in expected.get("first_row_of_each_layer_is_input_row", {}).items():
        assert [int(row[0]) for row in tensors[layer]] == rows
    if "load_shape" in expected:
        joined = torch.cat([read[layer] for layer in LAYERS])
        assert list(joined.shape) == expected["load_shape"]
        assert torch.equal(joined, next(iter(made.module.parameters())))


def written(content: str, folder: Path) -> Path:
    """A file as the test case names it."""
    path = folder / "old.pt"
    rows = torch.randn(2, 768)
    made: Any = {
        "webui_string_to_param": {"string_to_param": {"*": nn.Parameter(rows)}, "name": "x", "step": 5},
        "one_dim": {"<word>": rows[0]},
        "not_a_dict": rows,
    }[content]
    torch.save(made, path)
    return path


@pytest.mark.parametrize("case", VECTORS["load"], ids=lambda case: " ".join(map(str, case["in"].values())))
def test_every_form_is_read(case: dict[str, Any], tmp_path: Path) -> None:
    content, expected = case["in"]["content"], case["out"]
    if content == "sdxl":
        path = tmp_path / "word.safetensors"
        save_file({key: torch.randn(2, 4) for key in case["in"]["keys"]}, str(path))
        names: tuple[str, ...] = PAIR
    else:
        path, names = written(content, tmp_path), (SINGLE,)
    if "error" in expected:
        with pytest.raises(UserError) as error:
            read_embedding(path, names)
        assert error.value.key == "weights"
        return
    assert [list(value.shape) for value in read_embedding(path, names).values()] == expected["loaded"]


def test_files_that_do_not_fit_say_what_they_are(tmp_path: Path) -> None:
    pair, layers, odd = tmp_path / "xl.safetensors", tmp_path / "xti.safetensors", tmp_path / "odd.safetensors"
    save_file({name: torch.zeros(1, 4) for name in PAIR}, str(pair))
    save_file({name: torch.zeros(1, 4) for name in LAYERS}, str(layers))
    save_file({"x": torch.zeros(1, 2, 3)}, str(odd))
    with pytest.raises(UserError, match="is for SDXL, but this trains one for Stable Diffusion 1 or 2"):
        read_embedding(pair, (SINGLE,))
    with pytest.raises(UserError, match="is for Extended Textual Inversion, but"):
        read_embedding(layers, (SINGLE,))
    with pytest.raises(UserError, match="is for SDXL, but this trains one for Extended"):
        read_embedding(pair, LAYERS)
    with pytest.raises(UserError, match="holds no embedding"):
        read_embedding(odd, (SINGLE,))
    with pytest.raises(UserError, match="does not exist"):
        read_embedding(tmp_path / "none.pt", (SINGLE,))
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no tensors here")
        with pytest.raises(UserError, match="damaged"):
            read_embedding(tmp_path / name, (SINGLE,))


class Dangerous:
    """Unpickling this would run code."""

    def __reduce__(self) -> Any:
        return (print, ("code was run",))


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"emb_params": Dangerous()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="holds code"):
        read_embedding(tmp_path / "evil.pt", (SINGLE,))
    assert "code was run" not in capsys.readouterr().out


def trained(version: str, vectors: int) -> tuple[Model, EmbeddingMethod]:
    base = model(version)
    made = method(base, num_vectors_per_token=vectors, init_word="cat")
    train(base, made, ["a photo of " + " ".join(made.words)], steps=2)
    return base, made


CAPTION = "a photo of mytoken, sky"


@pytest.mark.parametrize("version", ["sd1", "sd2"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_the_file(version: str, suffix: str, vectors: int, tmp_path: Path) -> None:
    base, made = trained(version, vectors)
    path = tmp_path / f"word.{suffix}"
    made.save(path, None, None)
    other = model(version)
    pipe: Any = StableDiffusionPipeline(
        vae=other.vae,
        text_encoder=other.text_encoders[0],
        tokenizer=other.tokenizers[0],
        unet=other.unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_textual_inversion(str(tmp_path), weight_name=path.name, token="mytoken")
    prompt = pipe.maybe_convert_prompt(CAPTION, pipe.tokenizer)
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    theirs = pipe.text_encoder(ids)[0]
    ours = conditioning(base, [made.rewrite_prompt(CAPTION)]).hidden
    assert not torch.equal(ours, conditioning(base, [CAPTION.replace("mytoken", "cat")]).hidden)
    assert torch.allclose(ours, theirs, atol=1e-6)


def in_pipeline(pipe: Any, tensors: dict[str, Tensor]) -> None:
    """As the documentation of diffusers loads an SDXL embedding: one encoder after the other."""
    for name, tokenizer, encoder in (
        ("clip_l", pipe.tokenizer, pipe.text_encoder),
        ("clip_g", pipe.tokenizer_2, pipe.text_encoder_2),
    ):
        pipe.load_textual_inversion(tensors[name], token="mytoken", tokenizer=tokenizer, text_encoder=encoder)


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_the_sdxl_file(vectors: int, tmp_path: Path) -> None:
    base, made = trained("sdxl", vectors)
    made.save(tmp_path / "word.safetensors", None, None)
    tensors = load_file(str(tmp_path / "word.safetensors"))
    assert set(tensors) == {"clip_l", "clip_g"}
    other = model("sdxl")
    pipe: Any = StableDiffusionXLPipeline(
        vae=other.vae,
        text_encoder=other.text_encoders[0],
        text_encoder_2=other.text_encoders[1],
        tokenizer=other.tokenizers[0],
        tokenizer_2=other.tokenizers[1],
        unet=other.unet,
        scheduler=None,
    )
    in_pipeline(pipe, tensors)
    theirs = pipe.encode_prompt(CAPTION, device="cpu", do_classifier_free_guidance=False)[0]
    ours = conditioning(base, [made.rewrite_prompt(CAPTION)])
    assert torch.allclose(ours.hidden, theirs, atol=1e-6)


def test_a_file_goes_back_into_a_method(tmp_path: Path) -> None:
    base, made = trained("sdxl", 2)
    made.save(tmp_path / "word.pt", None, None)
    again = method(model("sdxl"), num_vectors_per_token=2, weights=str(tmp_path / "word.pt"))
    for name, rows in made.module.rows.items():
        assert torch.equal(rows, again.module.rows[name])


def test_the_models_own_names_stay(tmp_path: Path) -> None:
    """The table keeps its name and is the only weight there, so that the model can still be saved and moved."""
    base = model()
    names = list(base.text_encoders[0].state_dict())
    method(base)
    assert list(base.text_encoders[0].state_dict()) == names
    table = text_core(base.text_encoders[0]).embeddings.token_embedding
    assert isinstance(table, ExtendedEmbedding)
    base.text_encoders[0].to(torch.bfloat16)
    assert table.weight.dtype == torch.bfloat16 and table.rows.dtype == torch.float32
    assert isinstance(StableDiffusion().encode_captions(base, [CAPTION], options=ModelOptions()).hidden, Tensor)
