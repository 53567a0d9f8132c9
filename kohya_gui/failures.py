"""Why a job failed, in one sentence with a way out: from its error event, else from its console and exit code."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """The cause, what to change, and the option to change (None where no single one is to blame)."""

    message: str
    hint: str = ""
    key: str | None = None


# pattern in the console -> message with {groups}, hint, option; the first match from the end wins
_SIGNS: tuple[tuple[re.Pattern[str], str, str, str | None], ...] = (
    (
        re.compile(r"(CUDA out of memory|torch\.OutOfMemoryError|CUDNN_STATUS_ALLOC_FAILED|HIP out of memory)"),
        "The GPU ran out of memory.",
        "Lower the batch size or the resolution, or switch gradient checkpointing on.",
        "gradient_checkpointing",
    ),
    (
        re.compile(r"(DefaultCPUAllocator: can't allocate memory|^MemoryError|Cannot allocate memory)"),
        "The machine ran out of memory.",
        "Lower the batch size, the resolution or the number of loader workers.",
        "train_batch_size",
    ),
    (
        re.compile(r"No space left on device"),
        "The disk is full.",
        "Free some space or choose another output folder, then resume.",
        "output_dir",
    ),
    (
        re.compile(r"ModuleNotFoundError: No module named '(?P<name>[\w.]+)'"),
        "The Python package {name} is not installed.",
        "Install it into the project's environment: pip install {package}.",
        None,
    ),
    (
        re.compile(
            r"(no kernel image is available|CUDA driver version is insufficient|NVIDIA driver on your system is too)"
        ),
        "The GPU driver does not fit the installed PyTorch.",
        "Update the driver, or install the PyTorch build made for this GPU.",
        None,
    ),
    (
        re.compile(r"(Address already in use|EADDRINUSE)"),
        "The port for the processes of this training is in use.",
        "Choose another main process port, or 0 for any free one.",
        "main_process_port",
    ),
    (
        re.compile(r"(LocalEntryNotFoundError|We couldn't connect to 'https://huggingface\.co'|OfflineModeIsEnabled)"),
        "The base model is not on this machine and could not be fetched.",
        "Give the path of a model file, or connect to the network.",
        "pretrained_model_name_or_path",
    ),
    (
        re.compile(r"PermissionError: .*: '(?P<path>[^']+)'"),
        "{path} may not be written or read by this user.",
        "Choose another folder or change its permissions.",
        None,
    ),
)
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "lycoris": "lycoris-lora", "skimage": "scikit-image"}
_LAUNCHER = re.compile(
    r"returned non-zero exit status (?P<code>\d+)|died with <Signals\.\w+: (?P<signal>\d+)>"
    r"|exitcode\s*:\s*(?P<elastic>-?\d+)"
)
_LAST_ERROR = re.compile(r"^(?P<kind>[A-Z]\w*(?:\.\w+)*(?:Error|Exception|Interrupt)): (?P<text>.+)$")
_CODES = {
    2: ("The trainer refused its options.", "The log's last lines say which; change it and run again.", None),
    3: (
        "The loss or a gradient became NaN or infinite.",
        "Lower the learning rate, or use bf16 or no mixed precision.",
        "learning_rate",
    ),
    130: ("The training was interrupted from its console.", "Resume it.", None),
}


def trainer_code(code: int | None, console: Sequence[str]) -> int | None:
    """The trainer's own exit code: the launcher between it and us answers 1 for all, but prints the number."""
    if code != 1:
        return code
    for line in reversed(console):
        found = _LAUNCHER.search(line)
        if found:
            if found["signal"]:
                return -int(found["signal"])
            return int(found["code"] or found["elastic"])
    return code


def explain(code: int | None, error: dict[str, Any], console: Sequence[str], message: str = "") -> Failure:
    """The cause of a failed job.

    Args:
        code: exit code of the launched command; negative for a signal; None if it never started or was lost.
        error: the first `error` event, or {}.
        console: the last lines of the console.
        message: what the supervisor noted, if it could not start the job.
    """
    if error.get("message"):
        key = error.get("key")
        return Failure(str(error["message"]), str(error.get("hint") or ""), key if isinstance(key, str) else None)
    if message:
        return Failure(message, "Check that the environment is complete: run setup again.")
    for line in reversed(console):
        for pattern, text, hint, key in _SIGNS:
            found = pattern.search(line)
            if found:
                names = found.groupdict()
                package = names.get("name", "").partition(".")[0]
                names["package"] = _PACKAGES.get(package, package)
                return Failure(text.format(**names), hint.format(**names), key)
    return _by_code(trainer_code(code, console), console)


def _by_code(code: int | None, console: Sequence[str]) -> Failure:
    if code in (-9, 137):
        hint = "Lower the batch size, the resolution or the number of loader workers, or close other programs."
        return Failure("The training was killed by the system, probably for want of memory.", hint, "train_batch_size")
    if code is not None and (code < 0 or code > 128):
        number = -code if code < 0 else code - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if code != 130:
            return Failure(
                f"The training was ended by {name}.", "Look into the log; resume it if the machine is well again."
            )
    if code in _CODES:
        return Failure(*_CODES[code])
    for line in reversed(console):
        found = _LAST_ERROR.match(line)
        if found and found["kind"] != "subprocess.CalledProcessError":
            return Failure(
                f"The trainer stopped with an error: {found['text'][:300]}", "The log holds the whole trace."
            )
    shown = "without an exit code" if code is None else f"with exit code {code}"
    return Failure(f"The training ended {shown}.", "The log's last lines may say why.")
