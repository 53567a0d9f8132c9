"""Batches from a data set class of somebody else (`dataset_class`), for programmers."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sd_scripts.data.batch_type import Batch
from sd_scripts.schema.errors import UserError

KEY = "dataset_class"


def load_foreign(name: str, offered: Mapping[str, Any], allow_plugins: bool) -> Sequence[Any]:
    """An instance of the class at a dotted path: a sequence of batches with a length.

    Args:
        offered: values for its constructor's parameters; those that it does not name are not passed.

    Raises:
        UserError: not allowed, not found, or not a sequence.
    """
    if not allow_plugins:
        raise UserError(
            f"dataset_class {name!r} is code of somebody else.", key=KEY, hint="Add --allow_plugins if you trust it."
        )
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise UserError(f"dataset_class is {name!r}, but must be package.module.Class.", key=KEY)
    try:
        made_by = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot load dataset_class {name!r}: {error}.", key=KEY) from error
    names = inspect.signature(made_by).parameters
    instance = made_by(**{key: value for key, value in offered.items() if key in names})
    if not hasattr(instance, "__len__") or not hasattr(instance, "__getitem__") or not len(instance):
        raise UserError(f"{name} must have a length above 0 and give a batch for a number.", key=KEY)
    batches: Sequence[Any] = instance
    return batches


def as_batch(item: Any, index: int, name: str) -> Batch:
    """A batch from a Batch or from a table with the keys that sd-scripts uses.

    Raises:
        UserError: naming what is missing: "captions", and "images" or "latents".
    """
    if isinstance(item, Batch):
        return item
    if not isinstance(item, Mapping) or "captions" not in item:
        raise UserError(f"{name}[{index}] must be a table with captions, and images or latents.", key=KEY)
    images, latents = item.get("images"), item.get("latents")
    pixels = images if images is not None else latents
    if pixels is None:
        raise UserError(f"{name}[{index}] has neither images nor latents.", key=KEY)
    count = len(pixels)
    captions = [str(caption) for caption in item["captions"]]
    if len(captions) != count:
        raise UserError(f"{name}[{index}] has {count} pictures and {len(captions)} captions.", key=KEY)
    stride = 1 if images is not None else 8
    size = torch.tensor([[pixels.shape[-2] * stride, pixels.shape[-1] * stride]] * count)

    def value(key: str, default: Tensor) -> Tensor:
        given = item.get(key)
        return default if given is None else torch.as_tensor(given)

    return Batch(
        images=images,
        latents=latents,
        captions=captions,
        loss_weights=value("loss_weights", torch.ones(count)).float(),
        network_multipliers=value("network_multipliers", torch.ones(count)).float(),
        masks=item.get("alpha_masks"),
        conditioning_images=item.get("conditioning_images"),
        original_sizes=value("original_sizes_hw", size),
        crop_top_lefts=value("crop_top_lefts", torch.zeros_like(size)),
        target_sizes=value("target_sizes_hw", size),
        paths=[str(path) for path in item.get("image_keys") or [f"{name}[{index}]"] * count],
        flipped=[bool(flag) for flag in item.get("flippeds") or [False] * count],
        index=index,
        text_outputs=_text_outputs(item),
    )


def _text_outputs(item: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Cached outputs of the text encoders, by our names or in the three lists that sd-scripts uses for SDXL."""
    outputs = item.get("text_outputs")
    if outputs is not None:
        return dict(outputs)
    names = {
        "hidden_state1": "text_encoder_outputs1_list",
        "hidden_state2": "text_encoder_outputs2_list",
        "pool2": "text_encoder_pool2_list",
    }
    if any(item.get(key) is None for key in names.values()):
        return None
    return {name: torch.as_tensor(item[key]) for name, key in names.items()}
