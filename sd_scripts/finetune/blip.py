"""BLIP for captions, through transformers; also from files in BLIP's original layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

from sd_scripts.finetune.captioning import model_error
from sd_scripts.models.weights import PICKLES, read_pickle, read_weights
from sd_scripts.schema.errors import UserError

HUB_MODEL = "Salesforce/blip-image-captioning-large"
PROMPT = "a picture of"
KEY = "caption_weights"
_HEAD = 64  # width of an attention head in every BLIP
_REPETITION = 1.1  # as BLIP's own sampling does
_RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)


@dataclass(frozen=True)
class Generation:
    """How words are chosen: the likeliest by beam search, or drawn from the likeliest `top_p`. Lengths in tokens."""

    beam_search: bool
    num_beams: int
    top_p: float
    max_length: int
    min_length: int

    def arguments(self) -> dict[str, Any]:
        """For transformers' generate."""
        lengths = {"max_length": self.max_length, "min_length": self.min_length}
        if self.beam_search:
            return lengths | {"num_beams": self.num_beams, "do_sample": False}
        return lengths | {"do_sample": True, "top_p": self.top_p, "repetition_penalty": _REPETITION, "num_beams": 1}


class Blip:
    """A loaded model."""

    def __init__(self, model: BlipForConditionalGeneration, processor: BlipProcessor, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._processor = processor
        self._device = device

    @torch.no_grad()
    def captions(self, images: list[Image.Image], how: Generation) -> list[str]:
        """One caption for each image, without the words that every one begins with."""
        inputs = self._processor(images=images, text=[PROMPT] * len(images), return_tensors="pt").to(self._device)
        made = self._model.generate(**inputs, **how.arguments())
        # The mark that begins a caption is beyond BERT's words, and not every tokenizer knows it as a mark.
        start = self._model.config.text_config.bos_token_id
        rows = [[token for token in row if token != start] for row in made.tolist()]
        texts = self._processor.batch_decode(rows, skip_special_tokens=True)
        return [text.strip().removeprefix(PROMPT).strip() for text in texts]


def load_blip(name: str, device: torch.device) -> Blip:
    """BLIP from a transformers folder, the hub, or a file in the original layout; the old default address is the hub's.

    Raises:
        UserError: it cannot be had, or is something else.
    """
    path = Path(name)
    if path.is_file():
        return Blip(*_from_file(path), device)
    if "://" in name:
        if not name.rstrip("/").endswith("/model_large_caption.pth"):
            raise UserError(f"caption_weights is the address {name}.", KEY, "Download it and give the file.")
        name = HUB_MODEL
    elif not path.is_dir() and (path.suffix in (*PICKLES, ".safetensors") or name.count("/") != 1):
        raise UserError(f"There is no model at {name}.", KEY, "Give a folder, a file or a hub name.")
    try:
        return Blip(BlipForConditionalGeneration.from_pretrained(name), BlipProcessor.from_pretrained(name), device)
    except (OSError, ValueError, RuntimeError) as error:
        raise model_error(name, error, KEY) from error


def _from_file(path: Path) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Model and processor for weights in the original layout. The words come from the file's folder, or the hub."""
    weights = renamed(_weights(path))
    vision, text = configs_of(weights, path)
    home = str(path.parent) if (path.parent / "tokenizer_config.json").is_file() else HUB_MODEL
    try:
        tokenizer = BlipProcessor.from_pretrained(home).tokenizer
    except (OSError, ValueError) as error:
        raise model_error(f"{home} (for its vocabulary)", error, KEY) from error
    marks = {"sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id}
    text |= marks | {"pad_token_id": tokenizer.pad_token_id}
    config = BlipConfig(text_config=text, vision_config=vision)
    model = BlipForConditionalGeneration(config)
    wanted = model.state_dict()
    used = {key: value for key, value in weights.items() if key in wanted}
    missing = [key for key in wanted if key not in used and not key.endswith("position_ids")]
    tied = {"text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.decoder.weight"}
    if [key for key in missing if key not in tied] or any(used[key].shape != wanted[key].shape for key in used):
        raise UserError(f"{path} is no BLIP for captions: {len(missing)} weights are missing.", KEY)
    model.load_state_dict(used, strict=False)
    model.tie_weights()
    size = config.vision_config.image_size
    return model, BlipProcessor(BlipImageProcessorPil(size={"height": size, "width": size}), tokenizer)


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix not in PICKLES:
        return read_weights(path, KEY)
    content = read_pickle(path, KEY)
    inner = content.get("model", content) if isinstance(content, dict) else {}
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original names as transformers has them; those that are alike stay."""
    found = {}
    for name, value in weights.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def configs_of(weights: Mapping[str, Tensor], path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The configurations for seeing and for writing that follow from the weights' shapes.

    Raises:
        UserError: another kind of file.
    """
    try:
        patch = weights["vision_model.embeddings.patch_embedding.weight"].shape
        places = weights["vision_model.embeddings.position_embedding"].shape[-2] - 1
        words = weights["text_decoder.bert.embeddings.word_embeddings.weight"].shape
        cross = weights["text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"].shape
        inner = weights["text_decoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0]
        seen = weights["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
        length = weights["text_decoder.bert.embeddings.position_embeddings.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{path} is no BLIP for captions: it lacks {error}.", KEY) from error
    vision = {
        "hidden_size": patch[0],
        "intermediate_size": seen,
        "num_hidden_layers": _layers(weights, "vision_model.encoder.layers."),
        "num_attention_heads": max(1, patch[0] // _HEAD),
        "patch_size": patch[-1],
        "image_size": round(places**0.5) * patch[-1],
    }
    text = {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "encoder_hidden_size": cross[1],
        "intermediate_size": inner,
        "num_hidden_layers": _layers(weights, "text_decoder.bert.encoder.layer."),
        "num_attention_heads": max(1, words[1] // _HEAD),
        "max_position_embeddings": length,
        "bos_token_id": words[0] - 2,  # [DEC], which BLIP added behind BERT's words
    }
    return vision, text


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix))
