"""The words that a network changes most: the whole vocabulary through the text encoder, without and with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_scripts.models.build import filled, make_projected_text_encoder, make_text_encoder
from sd_scripts.models.source import ANY, find_source
from sd_scripts.models.text import encode
from sd_scripts.models.tokenizer import load_tokenizers
from sd_scripts.networks.changes import Misfit, changed
from sd_scripts.networks.names import TEXT_ENCODER_2, UNET, layer_of
from sd_scripts.networks.netfile import NetworkFile, open_network
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tools_inspect import InterrogateLoraOptions
from sd_scripts.tools.common import Ticker, say

SHOWN = 100
# SDXL's U-Net is given the last layer but one of both encoders, as it is.
_XL_LAYER = 2


def interrogate(options: InterrogateLoraOptions) -> None:
    """Print the words that the network changes most, the most changed first. Raises UserError."""
    for key in ("sd_model", "model"):
        if not getattr(options, key):
            raise UserError(f"{key} is missing.", key, f"Give --{key}.")
    file = open_network(str(options.model), "model")
    if not any(layer is not None and layer.part != UNET for layer in map(layer_of, file)):
        raise UserError(f"{file.path} has no part for the text encoder, so that its words cannot be told.", "model")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoders, tokenizer, version = text_encoders(str(options.sd_model), device)
    if options.v2 and version != "sd2":
        say(f"note: --v2 is given, but {options.sd_model} is another version")
    layers = min(int(encoder.config.num_hidden_layers) for encoder in encoders)
    if (options.clip_skip or 0) > layers:
        raise UserError(f"clip_skip is {options.clip_skip}, but there are {layers} layers.", "clip_skip")
    pairs = [(encoder, with_network(encoder, number, file)) for number, encoder in enumerate(encoders)]
    say(f"interrogating {Path(file.path).name}")
    ids = tokens_of(options.words, tokenizer) if options.words else range(max(tokenizer.all_special_ids) + 1)
    layer = (options.clip_skip or _XL_LAYER) if version == "sdxl" else options.clip_skip
    sizes = differences(pairs, ids, tokenizer, batch_size=options.batch_size, layer=layer, normalised=version != "sdxl")
    ranked = sorted(zip(ids, sizes.tolist()), key=lambda pair: -pair[1])[:SHOWN]
    say(f"top {len(ranked)}:")
    for place, (token, size) in enumerate(ranked):
        say(f"[{place:3d}]: {token:5d} {word_of(tokenizer, token):<20s}: {size:.5f}")
    say("most changed: " + ", ".join(word_of(tokenizer, token) for token, _ in ranked[:10]))


def text_encoders(source: str, device: torch.device) -> tuple[list[nn.Module], Any, str]:
    """A model's text encoders in 32 bits, its first tokenizer, and its version. The rest of it is not loaded."""
    found = find_source(source, ANY, want_vae=False)
    encoders: list[nn.Module] = []
    for number in range(1, 3 if found.version == "sdxl" else 2):
        make = make_projected_text_encoder if number == 2 else make_text_encoder
        encoder = filled(make, found.text(number, torch.float32), f"text encoder {number}", source)
        encoders.append(encoder.to(device).eval().requires_grad_(False))
    return encoders, load_tokenizers(found.version, None)[0], found.version


@torch.no_grad()
def with_network(encoder: nn.Module, number: int, file: NetworkFile) -> nn.Module:
    """A copy of a text encoder (0 the first, 1 the second) with a network's effect in its weights.

    Raises:
        UserError: the network does not fit it.
    """
    made = copy.deepcopy(encoder)
    for module in file:
        layer = layer_of(module)
        if layer is None or layer.part == UNET or (layer.part == TEXT_ENCODER_2) != (number == 1):
            continue
        path = layer.path if hasattr(encoder, "text_model") else layer.path.removeprefix("text_model.")
        try:
            place: Any = made.get_submodule(path)
            weight, bias = changed(
                file.tensors(module), place.weight.cpu(), _on_cpu(place.bias), 1.0, file.kind(module)
            )
        except (AttributeError, Misfit) as error:
            reason = error if isinstance(error, Misfit) else "has no layer there"
            raise UserError(
                f"{file.path}: {module} {reason}.", "sd_model", "Is the network for another kind of base model?"
            ) from error
        if not weight.isfinite().all():
            raise UserError(f"{file.path}: {module} holds numbers that are not finite.", "model")
        place.weight.copy_(weight)
        if bias is not None and place.bias is not None:
            place.bias.copy_(bias)
        file.forget()
    return made


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


@torch.inference_mode()
def differences(
    pairs: Sequence[tuple[nn.Module, nn.Module]],
    ids: Sequence[int],
    tokenizer: Any,
    *,
    batch_size: int,
    layer: int | None,
    normalised: bool,
) -> Tensor:
    """Mean absolute difference of the hidden states of each token alone, between begin and end mark. [len(ids)].

    Args:
        pairs: each text encoder without and with the network.
        ids: of the tokens.
        tokenizer: for the marks.
        batch_size: tokens at once.
        layer: counted from the last one; None: the last one.
        normalised: put the states through the final layer norm.
    """
    found = torch.zeros(len(ids))
    ticker = Ticker("words", len(ids))
    for start in range(0, len(ids), batch_size):
        ticker.at(start)
        some = ids[start : start + batch_size]
        rows = torch.tensor([[tokenizer.bos_token_id, token, tokenizer.eos_token_id] for token in some])
        states = [[_states(encoder, rows, layer, normalised) for encoder in pair] for pair in pairs]
        apart = torch.cat([(plain - trained).abs() for plain, trained in states], dim=-1)
        found[start : start + len(some)] = apart.mean(dim=(1, 2)).cpu()
    ticker.at(len(ids))
    return found


def _states(encoder: nn.Module, rows: Tensor, layer: int | None, normalised: bool) -> Tensor:
    if normalised:
        return encode(encoder, rows, layer)
    rows = rows.to(next(encoder.parameters()).device)
    return encoder(rows, output_hidden_states=True).hidden_states[-(layer or 1)]


def word_of(tokenizer: Any, token: int) -> str:
    """The text of a token."""
    text = str(tokenizer.convert_tokens_to_string([tokenizer.convert_ids_to_tokens(token)]))
    return text.replace("</w>", "").strip()


def tokens_of(words: Sequence[str], tokenizer: Any) -> list[int]:
    """The tokens of words, each once; long or rare words have several."""
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return list(dict.fromkeys(token for word in words for token in tokenizer(word).input_ids if token not in marks))
