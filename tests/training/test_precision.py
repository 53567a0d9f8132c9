"""Number formats by option and device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.schema.training import TrainingOptions
from sd_scripts.training.precision import Precision, allow_fp16_gradients, resolve

F32, F16, B16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture
def _own_accelerate() -> Iterator[None]:
    """accelerate keeps one state a process; other tests must not inherit this one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def _resolve(device: str = "cuda", save: str | None = None, **given: Any) -> Precision:
    return resolve(TrainingOptions(**given), SavingOptions(save_precision=save), device)


@pytest.mark.parametrize(
    ("given", "weights", "trained", "unet", "text"),
    [
        ({}, F32, F32, F32, F32),
        ({"mixed_precision": "fp16"}, F16, F32, F16, F16),
        ({"mixed_precision": "bf16"}, B16, F32, B16, B16),
        ({"mixed_precision": "fp16", "full_fp16": True}, F16, F16, F16, F16),
        ({"mixed_precision": "bf16", "full_bf16": True}, B16, B16, B16, B16),
        ({"mixed_precision": "bf16", "fp8_base": True}, B16, F32, F8, F8),
        ({"mixed_precision": "bf16", "fp8_base_unet": True}, B16, F32, F8, B16),
        ({"mixed_precision": "fp16", "fp8_base_unet": True, "fp8_base": True}, F16, F32, F8, F16),
    ],
)
def test_formats(
    given: dict[str, Any], weights: torch.dtype, trained: torch.dtype, unet: torch.dtype, text: torch.dtype
) -> None:
    found = _resolve(**given)
    assert (found.weights, found.trained, found.unet_storage, found.text_encoder_storage) == (
        weights,
        trained,
        unet,
        text,
    )
    assert found.scales_loss == (given.get("mixed_precision") == "fp16") and not found.notices
    assert found.vae(True) == F32 and found.vae(False) == weights


def test_fp16_on_a_cpu_becomes_bf16_and_says_so(_own_accelerate: None) -> None:
    found = _resolve("cpu", mixed_precision="fp16", full_fp16=True)
    assert (found.mixed_precision, found.weights, found.trained, found.scales_loss) == ("bf16", B16, B16, False)
    assert [(notice.code, notice.key) for notice in found.notices] == [("fp16_on_cpu", "mixed_precision")]
    accelerator = Accelerator(mixed_precision=found.mixed_precision, cpu=True)
    with accelerator.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == B16
    assert accelerator.scaler is None


@pytest.mark.parametrize(("save", "dtype"), [(None, None), ("float", F32), ("fp16", F16), ("bf16", B16)])
def test_save_format(save: str | None, dtype: torch.dtype | None) -> None:
    assert _resolve(save=save).save == dtype


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"full_fp16": True}, "full_fp16"),
        ({"full_bf16": True, "mixed_precision": "fp16"}, "full_bf16"),
        ({"full_bf16": True, "full_fp16": True, "mixed_precision": "fp16"}, "full_fp16"),
        ({"fp8_base": True}, "fp8_base"),
        ({"fp8_base_unet": True}, "fp8_base_unet"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
    ],
)
def test_impossible_combinations(given: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        _resolve(**given)
    assert caught.value.key == key


def test_fp16_gradients_are_unscaled_after_permission() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=F16))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def scaled(scaler: Any) -> None:
        weight.grad = None
        scaler.scale((weight * 2).sum()).backward()
        scaler.unscale_(optimizer)

    plain, open_ = (torch.amp.GradScaler("cpu", init_scale=64.0) for _ in range(2))
    with pytest.raises(ValueError, match="FP16 gradients"):
        scaled(plain)
    allow_fp16_gradients(open_)
    scaled(open_)
    assert weight.grad is not None and weight.grad.tolist() == [2.0] * 4
    open_.step(optimizer)
    open_.update()
    assert weight.tolist() == [-1.0] * 4
    with pytest.raises(UserError, match="full_bf16"):
        allow_fp16_gradients(object())
