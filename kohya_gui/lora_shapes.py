"""What a network's tensors and its model card (`modelspec.*`) tell where the notes of its training are missing.

Everything is given under the names of those notes (`ss_*`), so that there is one way to read them.
"""

import json
from collections import Counter
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# the first side of the tensor that ends like this is the rank
_RANKS = (".lora_down.weight", ".lora_A.weight", ".hada_w1_b", ".lokr_w1_b", ".lokr_w2_b", ".a2.weight")
_ALGORITHMS = {
    ".hada_w1_a": "loha",
    ".lokr_w1": "lokr",
    ".oft_blocks": "diag-oft",
    ".on_input": "ia3",
    ".a1.weight": "glora",
    ".diff": "full",
    ".lora_mid.weight": "locon",
}
# tensors that are there because of a setting
_SWITCHES = {
    ".dora_scale": "dora_wd",
    ".lora_mid.weight": "use_tucker",
    ".hada_t1": "use_tucker",
    ".lokr_t2": "use_tucker",
    ".lokr_w1_a": "decompose_both",
    ".rescale": "rescaled",
}
_BLOCKS = ".oft_blocks"
_BUTTERFLY_SIDES = 4
OFT_PREFIX = "oft_unet"
_ARCHITECTURES = {
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v1": "sd_v1",
}


def of_model_card(notes: Mapping[str, str]) -> dict[str, str]:
    """The kind of base model and the resolution from `modelspec.*`."""
    found = {}
    name = notes.get("modelspec.architecture", "").partition("/")[0]
    if name in _ARCHITECTURES:
        found["ss_base_model_version"] = _ARCHITECTURES[name]
    width, _, height = notes.get("modelspec.resolution", "").partition("x")
    if width.isdecimal() and height.isdecimal() and len(width + height) < 12:
        found["ss_resolution"] = f"({width}, {height})"
    return found


def of_tensors(shapes: Shapes) -> dict[str, str]:
    """The kind of network, its ranks and some settings from names and shapes."""
    if any(key.startswith(OFT_PREFIX) for key in shapes):
        return {"ss_network_module": "networks.oft"} | _dim(_blocks(shapes, 0))
    linear, convolution = _rank(shapes, convolutions=False), _rank(shapes, convolutions=True)
    algorithm = next((algo for mark, algo in _ALGORITHMS.items() if any(mark in key for key in shapes)), "")
    if algorithm == "diag-oft":
        butterflies = any(key.endswith(_BLOCKS) and len(shape) == _BUTTERFLY_SIDES for key, shape in shapes.items())
        algorithm = "boft" if butterflies else algorithm
        linear = _blocks(shapes, 2 if butterflies else 1)
    arguments = {"algo": algorithm} if algorithm else {}
    if convolution and not algorithm:
        arguments["conv_dim"] = str(convolution)
    for mark, setting in _SWITCHES.items():
        if any(key.endswith(mark) for key in shapes):
            arguments[setting] = "True"
    found = {"ss_network_module": "lycoris.kohya" if algorithm else "networks.lora"} | _dim(linear)
    if arguments:
        found["ss_network_args"] = json.dumps(arguments)
    return found


def _dim(rank: int) -> dict[str, str]:
    return {"ss_network_dim": str(rank)} if rank else {}


def _blocks(shapes: Shapes, side: int) -> int:
    """What most blocks of an OFT have on this side; 0 if none has it."""
    counted = Counter(shape[side] for key, shape in shapes.items() if key.endswith(_BLOCKS) and len(shape) > side)
    return counted.most_common(1)[0][0] if counted else 0


def _rank(shapes: Shapes, *, convolutions: bool) -> int:
    """The rank that most of the layers have; 0 if none has one."""
    counted: Counter[int] = Counter()
    for key, shape in shapes.items():
        spread = len(shape) == 4 and shape[-1] > 1
        if shape and key.endswith(_RANKS) and spread == convolutions:
            counted[shape[0]] += 1
    return counted.most_common(1)[0][0] if counted else 0
