"""LyCORIS from PyPI under kohya's protocol for networks: `network_module = lycoris.kohya`.

What computes is LyCORIS 4.1.3. Made here are the settings (its own reading takes "False" for true and drops what it
does not know), the presets (its own stay on its class for the rest of the process), and the way back from a file (its
own fails for ia3, dylora and some of LoKr, and counts alpha / rank of LoHa and LoKr twice when it merges).
"""

from __future__ import annotations

import copy
import gc
import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sd_scripts.networks.base import read_weights
from sd_scripts.networks.lycoris_files import by_module, made_like
from sd_scripts.networks.lycoris_kinds import classes
from sd_scripts.networks.lycoris_network import Network, layers, network_class
from sd_scripts.networks.lycoris_presets import preset
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loratypes import LYCORIS
from sd_scripts.schema.lycoris import Settings, read_settings, refusal, remarks

logger = logging.getLogger(__name__)

# What LyCORIS calls some settings inside.
_INSIDE = {"dora_wd": "weight_decompose", "wd_on_output": "wd_on_out"}
_PASSED = (
    "use_tucker", "use_scalar", "rank_dropout_scale", "train_norm", "dora_wd", "wd_on_output", "bypass_mode", "rs_lora",
    "decompose_both", "full_matrix", "unbalanced_factorization", "rescaled", "train_on_input", "factor", "block_size",
)  # fmt: skip


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: nn.Module | None,
    text_encoder: Any,
    unet: nn.Module,
    **arguments: Any,
) -> Network:
    """A new network for these module trees; one text encoder is handed over bare, several as a list.

    Raises:
        UserError: for arguments that LyCORIS refuses, or with which the file would not do what was trained.
    """
    settings = read_settings(arguments)
    rank, alpha = network_dim or 4, 1.0 if network_alpha is None else network_alpha
    _check(settings, rank, arguments)
    values = settings.values
    words = {_INSIDE.get(key, key): values[key] for key in _PASSED}
    conv_rank = rank if values["conv_dim"] is None else values["conv_dim"]
    with _guarded(preset(settings.preset)):
        network = network_class()(
            text_encoder,
            unet,
            multiplier=multiplier,
            lora_dim=rank,
            conv_lora_dim=conv_rank,
            alpha=alpha,
            conv_alpha=alpha if values["conv_alpha"] is None else values["conv_alpha"],
            dropout=values["dropout"] or 0.0,
            rank_dropout=values["rank_dropout"] or 0.0,
            module_dropout=values["module_dropout"] or 0.0,
            constraint=values["constraint"] or 0.0,
            network_module=settings.algo,
            norm_modules=classes()["NormModule"],
            warn_on_unmatched=False,
            **words,
        )
    return _finished(network, settings)


def create_network_from_weights(
    multiplier: float,
    file: str,
    vae: nn.Module | None,
    text_encoder: Any,
    unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    **arguments: Any,
) -> tuple[Network, Mapping[str, Tensor]]:
    """A network with the kinds, ranks and weights of a file; the arguments say only what a file cannot.

    With `for_inference` it has no modules of its own: it is there to be merged.

    Raises:
        UserError: the file does not fit the models.
    """
    settings = read_settings({"dropout": arguments.get("neuron_dropout"), **arguments})
    weights = read_weights(file) if weights_sd is None else weights_sd
    with _guarded({}):
        network = network_class()(None, nn.Module(), multiplier=multiplier, warn_on_unmatched=False)
        network.source = Path(file)
        if not for_inference:
            _fill(network, layers(unet, text_encoder), weights, settings)
    for lora in network.loras:
        lora.multiplier = multiplier
    return _finished(network, settings), weights


def _fill(network: Network, found: Mapping[str, nn.Module], weights: Mapping[str, Tensor], settings: Settings) -> None:
    """Modules for every layer that the file has tensors for."""
    file = network.source or ""
    modules = by_module(weights)
    for name, tensors in modules.items():
        if name in found:
            made = made_like(name, found[name], tensors, settings, file)
            (network.unet_loras if name.startswith("lora_unet_") else network.text_encoder_loras).append(made)
    network.loras = [*network.text_encoder_loras, *network.unet_loras]
    if not network.loras:
        raise UserError(f"'{file}' holds no weight that fits this model.", "network_weights")
    left = len(modules) - len(network.loras)
    if left:
        logger.warning("%d of the %d modules of %s belong to no layer here.", left, len(modules), file)


def _finished(network: Network, settings: Settings) -> Network:
    both = settings["loraplus_lr_ratio"]
    unet, text = settings["loraplus_unet_lr_ratio"], settings["loraplus_text_encoder_lr_ratio"]
    network.plus_ratios = (unet or both, text or both)
    return network


def _check(settings: Settings, rank: int, arguments: Mapping[str, Any]) -> None:
    """Refuse what cannot work, and say what does nothing."""
    wrong = refusal(settings, rank)
    if wrong is not None:
        raise UserError(wrong[1], "network_args", hint=wrong[2])
    dropout = arguments.get("neuron_dropout")
    for _, sentence in remarks(settings, float(dropout) if dropout else None):
        logger.warning("%s", sentence)


@contextmanager
def _guarded(table: Mapping[str, Any]) -> Iterator[None]:
    """Build a network inside: with these layers as targets and with our modules, and with neither afterwards.

    Raises UserError for what LyCORIS refuses.
    """
    kohya = importlib.import_module(LYCORIS)
    theirs = kohya.LycorisNetworkKohya
    before = {key: copy.copy(value) for key, value in vars(theirs).items() if key.isupper()}
    known = dict(kohya.network_module_dict)
    logging.getLogger("LyCORIS").setLevel(logging.WARNING)
    # T-LoRA asks for a full collection with every module it makes: minutes with SDXL. What exists already is set aside.
    gc.freeze()
    try:
        theirs.apply_preset(dict(table))
        kohya.network_module_dict.update({algo: classes()[kind.__name__] for algo, kind in known.items()})
        yield
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        hint = "Check algo, preset, ranks and the other network_args."
        if "BOFT" in str(error):
            hint = "Take a larger rank: 10 or more splits every layer of Stable Diffusion."
        raise UserError(f"LyCORIS refused: {type(error).__name__}: {error}", "network_args", hint) from error
    finally:
        gc.unfreeze()
        kohya.network_module_dict.clear()
        kohya.network_module_dict.update(known)
        for key, value in before.items():
            setattr(theirs, key, value)
