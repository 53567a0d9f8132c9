"""Small real models with new words in them, for the tests of Textual Inversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.families.base import Conditioning, Model
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.methods.embedding import EmbeddingMethod
from sd_scripts.methods.xti import XtiMethod
from sd_scripts.models.build import text_core
from sd_scripts.models.tiny import build_tiny
from sd_scripts.schema.embedding import EmbeddingOptions
from sd_scripts.schema.model import ModelOptions
from sd_scripts.schema.optimizer import OptimizerOptions

SD, XL = StableDiffusion(), StableDiffusionXL()
VECTORS = json.loads((Path(__file__).parent / "data" / "textual_inversion.json").read_text(encoding="utf-8"))


def model(version: str = "sd1") -> Model:
    """The same small model every time."""
    made = build_tiny(version)
    return Model(made.unet, list(made.text_encoders), list(made.tokenizers), made.vae, version, made.prediction_type)


def family(base: Model) -> Any:
    return XL if base.version == "sdxl" else SD


def tables(base: Model) -> list[Tensor]:
    """The token table of each text encoder."""
    return [text_core(encoder).embeddings.token_embedding.weight for encoder in base.text_encoders]


def number_rows(base: Model) -> None:
    """Make row i of every table hold the value i, so that a copied row tells where it came from."""
    for table in tables(base):
        table.data.copy_(torch.arange(len(table), dtype=torch.float32)[:, None].expand_as(table))


def options(**given: Any) -> EmbeddingOptions:
    return EmbeddingOptions(**{"token_string": "mytoken", **given})


def attach(base: Model, made: Any, **more: Any) -> Any:
    settings = {"gradient_checkpointing": False, "weight_dtype": torch.float32, **more}
    made.attach(base, family(base), **settings)
    return made


def method(base: Model, rate: float = 1e-2, **given: Any) -> EmbeddingMethod:
    """A method whose words are in the model."""
    return attach(base, EmbeddingMethod(options(**given), OptimizerOptions(learning_rate=rate)))


def xti(base: Model, rate: float = 1e-2, **given: Any) -> XtiMethod:
    made = XtiMethod(options(**given), OptimizerOptions(learning_rate=rate), model=ModelOptions())
    return attach(base, made)


def conditioning(base: Model, captions: list[str]) -> Conditioning:
    found = family(base).encode_captions(base, captions, options=ModelOptions())
    if base.version == "sdxl":
        found.sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(len(captions), 1)
    return found


def train(base: Model, made: Any, captions: list[str], steps: int = 3) -> tuple[list[float], torch.optim.Optimizer]:
    """Some steps towards zero output, through the whole model; the losses and the optimizer."""
    groups = [{"params": group.params, "lr": group.lr} for group in made.parameter_groups()]
    optimizer = torch.optim.AdamW(groups)
    noisy = torch.randn(len(captions), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.full((len(captions),), 500)
    made.on_epoch_start()

    class Batch:
        pass

    batch = Batch()
    batch.captions = captions  # type: ignore[attr-defined]
    losses = []
    for step in range(steps):
        made.on_step_start(None, step)
        steered = made.before_predict(conditioning(base, captions), batch, noisy, timesteps)
        loss = family(base).predict(base, noisy, timesteps, steered).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, optimizer


def everything(base: Model) -> dict[str, Tensor]:
    """A copy of every weight of the model."""
    parts: list[nn.Module] = [base.unet, *base.text_encoders, base.vae]
    return {
        f"{number}.{name}": value.clone()
        for number, part in enumerate(parts)
        for name, value in part.state_dict().items()
    }
