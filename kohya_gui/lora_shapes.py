"""What a network's tensors and its model card (`modelspec.*`) tell where the notes of its training are missing.

Everything is given under the names of those notes (`ss_*`), so that there is one way to read them.
"""

import json
from collections import Counter
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# the first side of the tensor that ends like this is the rank
_RANKS = (".lora_down.weight", ".lora_A.weight", ".hada_w1_b", ".lokr_w1_b", ".lokr_w2_b")
_ALGORITHMS = {".hada_w1_a": "loha", ".lokr_w1": "lokr", ".oft_blocks": "diag-oft", ".on_input": "ia3"}
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
    """The kind of network and its ranks from names and shapes."""
    linear, convolution = _rank(shapes, convolutions=False), _rank(shapes, convolutions=True)
    algorithm = next((algo for mark, algo in _ALGORITHMS.items() if any(mark in key for key in shapes)), "")
    arguments = {"algo": algorithm} if algorithm else {}
    if convolution and not algorithm:
        arguments["conv_dim"] = str(convolution)
    found = {"ss_network_module": "lycoris.kohya" if algorithm else "networks.lora"}
    if linear:
        found["ss_network_dim"] = str(linear)
    if arguments:
        found["ss_network_args"] = json.dumps(arguments)
    return found


def _rank(shapes: Shapes, *, convolutions: bool) -> int:
    """The rank that most of the layers have; 0 if none has one."""
    counted: Counter[int] = Counter()
    for key, shape in shapes.items():
        spread = len(shape) == 4 and shape[-1] > 1
        if shape and key.endswith(_RANKS) and spread == convolutions:
            counted[shape[0]] += 1
    return counted.most_common(1)[0][0] if counted else 0
