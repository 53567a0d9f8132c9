"""Which kind of model the base model is: from the form's one control, an older file's switches, or the model's header.

The trainer knows three switches (`v2`, `v_parameterization`, `sdxl`); on the page one choice stands for them.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from kohya_gui.hub_cache import cached, is_hub_id
from sd_scripts.schema.gui import AUTO_FAMILY, FAMILY_NAMES, FAMILY_SWITCHES
from sd_scripts.schema.headers import ModelFacts, identify

__all__ = ["FAMILIES", "FAMILY_NAMES", "SWITCHES", "detect", "family", "from_switches", "model_facts", "resolve"]

SWITCHES = ("v2", "v_parameterization", "sdxl")
FAMILIES = FAMILY_SWITCHES
"""Choice of `model_family` -> the switches (v2, v_parameterization, sdxl) it stands for."""
_HUB = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-xl-base-0.9": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl",
    "stabilityai/stable-diffusion-2-base": "sd2",
    "stabilityai/stable-diffusion-2-1-base": "sd2",
    "stabilityai/stable-diffusion-2": "sd2-v",
    "stabilityai/stable-diffusion-2-1": "sd2-v",
}
# the larger Stable Diffusion 2 models, which alone predict velocity, carry their size in the file's name
_LARGE_SD2 = re.compile(r"(?<!\d)768(?!\d)")


@lru_cache(maxsize=256)
def _identified(path: str, changed: int, length: int) -> ModelFacts:
    return identify(path)


def model_facts(path: str) -> ModelFacts:
    """What a model path, or a Hub name whose model was fetched before, holds, from its header; remembered until the
    file changes."""
    path = cached(path) or path
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ModelFacts(kind="missing", problem="there is no such file or folder")
    return _identified(path, found.st_mtime_ns, found.st_size)


def detect(model: str) -> str:
    """The family that a model's name or header tells: a key of `FAMILIES`, or "" if neither does.

    Args:
        model: a file, a diffusers folder or a Hub name.
    """
    name = model.strip().rstrip("/")
    if name in _HUB:
        return _HUB[name]
    facts = model_facts(model) if model else ModelFacts()
    if facts.version == "sd2":
        velocity = facts.prediction == "v_prediction"
        named = not facts.prediction and _LARGE_SD2.search(os.path.basename(name))
        return "sd2-v" if velocity or named else "sd2"
    return facts.version if facts.version in FAMILIES else ""


def resolve(values: Mapping[str, Any], allowed: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """The values with `v2`, `v_parameterization` and `sdxl` worked out from `model_family`.

    With "auto", switches of an older file hold if any is there, else the header of the base model tells, else it is
    Stable Diffusion 1. Resolving twice changes nothing more, and the second time no file is looked at.

    Args:
        values: option key -> value.
        allowed: says of a path whether it may be looked at; None allows all.
    """
    model = str(values.get("pretrained_model_name_or_path") or "")
    if allowed is not None and not is_hub_id(model) and not allowed(model):
        # even to ask a foreign machine whether a file is there tells it who asks
        model = ""
    chosen = values.get("model_family") or AUTO_FAMILY
    given = {key: values[key] for key in SWITCHES if values.get(key) is not None}
    if chosen in FAMILIES:
        switches = dict(zip(SWITCHES, FAMILIES[chosen], strict=True))
        if chosen in ("sd1", "sdxl"):
            # few of them predict velocity, and these often say so
            said = given["v_parameterization"] if "v_parameterization" in given else _says_velocity(model)
            switches["v_parameterization"] = said
    elif given:
        switches = dict.fromkeys(SWITCHES, False) | given
    else:
        switches = dict(zip(SWITCHES, FAMILIES[detect(model) or "sd1"], strict=True))
        switches["v_parameterization"] = switches["v_parameterization"] or _says_velocity(model)
    return {**values, **switches}


def family(values: Mapping[str, Any], allowed: Callable[[str], bool] | None = None) -> str:
    """The family that these values mean, "sd1", "sd2", "sd2-v" or "sdxl"; `allowed` as for `resolve`."""
    resolved = resolve(values, allowed)
    if resolved["sdxl"]:
        return "sdxl"
    if resolved["v2"]:
        return "sd2-v" if resolved["v_parameterization"] else "sd2"
    return "sd1"


def from_switches(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an older file with its switches turned into a choice of the family, where that says the same.

    All switches off become "auto": older pages had to be told what a model is, and one that was told nothing took
    Stable Diffusion 1, which the header says as well.
    """
    rest = {key: value for key, value in values.items() if key not in SWITCHES}
    on = tuple(values.get(key) is True for key in SWITCHES)
    if not any(on):
        return rest
    v2, velocity, sdxl = on
    # no model is both, and SDXL goes first, as it does where the trainer is chosen
    named = next(name for name, switches in FAMILIES.items() if switches == (v2 and not sdxl, velocity, sdxl))
    return {**rest, "model_family": named}


def _says_velocity(model: str) -> bool:
    return bool(model) and model not in _HUB and model_facts(model).prediction == "v_prediction"
