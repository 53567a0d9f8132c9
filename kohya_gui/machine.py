"""What this machine has: GPUs and memory, asked without loading PyTorch."""

import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gpu:
    """A GPU; `memory` in bytes, 0 if unknown; `capability` is NVIDIA's number of its generation, if known."""

    index: int
    name: str
    memory: int
    capability: tuple[int, int] | None = None


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; empty if there are none. Asked once, as it takes some milliseconds."""
    found = _nvidia()
    if not found and Path("/dev/kfd").exists():
        cards = sorted(Path("/sys/class/drm").glob("card[0-9]*/device/mem_info_vram_total"))
        found = [Gpu(i, "AMD GPU", int(card.read_text())) for i, card in enumerate(cards)] or [Gpu(0, "AMD GPU", 0)]
    return tuple(found)


def _nvidia() -> list[Gpu]:
    try:
        import pynvml
    except ImportError:
        return [Gpu(0, "NVIDIA GPU", 0)] if shutil.which("nvidia-smi") else []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        # no driver, no GPU
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(
                i,
                str(pynvml.nvmlDeviceGetName(handle)),
                int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            )
            for i, handle in enumerate(handles)
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def has_gpu() -> bool:
    """Whether there is a GPU that a trainer started from here would see."""
    return bool(gpus()) and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


def main_memory() -> int:
    """Bytes of main memory."""
    return int(psutil.virtual_memory().total)


def free_bytes(folder: Path) -> int | None:
    """Free bytes on the disk of a folder or of its nearest existing parent; None if it cannot be told."""
    place = folder
    while not place.exists() and place.parent != place:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None
