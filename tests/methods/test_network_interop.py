"""A trained file in somebody else's program: diffusers must move its output exactly as our own merge does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_kit import FAMILY, attached, model, output, pipeline, trained_file

from sd_scripts.schema.model import ModelOptions


@pytest.mark.parametrize("convolutions", [False, True])
def test_diffusers_loads_a_trained_file_and_does_what_our_merge_does(tmp_path: Path, convolutions: bool) -> None:
    options = {"network_dim": 4, "network_alpha": 2.0, "network_args": ["conv_dim=2"] if convolutions else None}
    trained, path = trained_file(tmp_path / "x.safetensors", rate=3e-2, steps=3, **options)
    wanted = output(trained)
    merged = model()
    plain = output(merged)
    attached(merged, network_dim=1, base_weights=[str(path)])
    torch.testing.assert_close(output(merged), wanted, rtol=1e-4, atol=1e-5)

    foreign = model()
    pipe = pipeline(foreign)
    pipe.load_lora_weights(str(path))
    theirs = output(foreign)
    effect = (wanted - plain).abs().max()
    assert effect > 1e-2
    assert (theirs - output(merged)).abs().max() < 1e-5

    text = FAMILY.encode_captions(foreign, ["a cat"], options=ModelOptions()).hidden
    own = FAMILY.encode_captions(merged, ["a cat"], options=ModelOptions()).hidden
    bare = FAMILY.encode_captions(model(), ["a cat"], options=ModelOptions()).hidden
    assert (own - bare).abs().max() > 1e-3
    assert (text - own).abs().max() < 1e-5
