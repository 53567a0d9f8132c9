"""A base model with shapes and types but no numbers, made without reading a weight or fetching one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sd_scripts.families.base import Family, Model
from sd_scripts.families.common import model_of
from sd_scripts.models import folder as folders
from sd_scripts.models.build import LoadedModel, make_projected_text_encoder, make_text_encoder, make_unet, make_vae
from sd_scripts.models.tokenizer import load_tokenizers
from sd_scripts.schema.headers import folder_version
from sd_scripts.schema.model import ModelOptions


class _WithoutNumbers(TorchFunctionMode):
    """On the meta device, what is written as numbers stays numbers, and what would be copied to the CPU stays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor:
            return func(*args, **{"device": "cpu", **kwargs})
        if func is Tensor.cpu and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def without_numbers() -> Iterator[None]:
    """Inside, modules are made with shapes and types alone, and weight files give no more than those."""
    with torch.device("meta"), _WithoutNumbers():
        yield


def shape_model(family: Family, options: ModelOptions, dtype: torch.dtype) -> Model:
    """The model of the options on the meta device.

    Of a file the header is read, of a folder the configurations and headers, of a hub model the configurations.

    Raises:
        UserError: as the family's own `load`.
    """
    source = str(options.pretrained_model_name_or_path or "")
    # Another VAE of the same kind takes as much memory; a hub's would have to be fetched whole.
    plain = replace(options, vae=None) if folders.is_hub_id(options.vae or "") else options
    with without_numbers():
        if source and not Path(source).exists() and folders.is_hub_id(source):
            return _from_configs(source, plain, dtype)
        return family.load(plain, dtype, "meta")


def _from_configs(source: str, options: ModelOptions, dtype: torch.dtype) -> Model:
    folder = folders.hub_configs(source)
    read = folders.read_config
    unet, first = read(folder / "unet"), read(folder / "text_encoder")
    version = folder_version(read(folder, "model_index.json"), unet, first)
    texts: list[nn.Module] = [make_text_encoder(first)]
    if version == "sdxl":
        texts.append(make_projected_text_encoder(read(folder / "text_encoder_2")))
    parts = [make_unet(unet), *texts, make_vae(read(folder / "vae"))]
    for part in parts:
        nn.Module.to(part, dtype)
        part.eval()
    loaded = LoadedModel(
        unet=parts[0],
        text_encoders=parts[1:-1],
        vae=parts[-1],
        tokenizers=load_tokenizers(version, options.tokenizer_cache_dir),
        version=version,
        prediction_type="v_prediction" if options.v_parameterization else folders.prediction_type(folder),
        source=source,
    )
    return model_of(loaded, dtype)


def pretend(modules: Iterable[nn.Module]) -> None:
    """Give modules of the meta device fake tensors of the CPU in place; call it under a fake tensor mode.

    Weights that several modules share stay shared.
    """
    made: dict[int, Tensor] = {}
    olds: list[Tensor] = []  # alive until the end: an id must not be used twice

    def fake(value: Tensor) -> Tensor:
        if id(value) not in made:
            olds.append(value)
            empty = torch.empty(value.shape, dtype=value.dtype, device="cpu")
            is_weight = isinstance(value, nn.Parameter)
            made[id(value)] = nn.Parameter(empty, value.requires_grad) if is_weight else empty
        return made[id(value)]

    seen: set[nn.Module] = set()
    for module in modules:
        for part in module.modules():
            if part in seen:
                continue
            seen.add(part)
            for table in (part._parameters, part._buffers):
                for name, value in table.items():
                    if value is not None and value.is_meta:
                        table[name] = fake(value)
            _replace_loose(part, fake)


def _replace_loose(part: nn.Module, fake: Callable[[Tensor], Tensor]) -> None:
    """Tensors that a module keeps in lists, out of sight of its own book-keeping (some networks do)."""
    for value in vars(part).values():
        if isinstance(value, list):
            value[:] = [fake(entry) if isinstance(entry, Tensor) and entry.is_meta else entry for entry in value]
