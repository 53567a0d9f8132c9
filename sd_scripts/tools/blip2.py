"""Captions by BLIP-2 in the order of a prompt: what the folder's name says, then what questions about it bring.

Every folder below the given one is named by what its pictures show; pictures in the folder itself are described, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.folders import parse_class_folder
from sd_scripts.schema.tools_captions import Blip2Options
from sd_scripts.tools.common import Ticker, run, say
from sd_scripts.tools.files import beside, find_pictures, folder, write_caption

if TYPE_CHECKING:
    from PIL.Image import Image

PROG = "main.py"
OPTIONS = Blip2Options
QUESTIONS = (
    "Question: what is the most important feature of {subject}? Answer:",
    "Question: what is {subject} doing? Answer:",
    "Question: where is this picture taken? Answer:",
    "Question: what is the lighting like? Answer:",
    "Question: from which angle is the picture taken? Answer:",
)
_LONGEST = 30  # tokens of one answer
_EMPTY = {"", "unknown", "nothing", "none", "it is unknown", "yes", "no", "i don't know"}

Ask = Callable[["Image", str], str]


def load(name: str) -> Ask:
    """A function that answers a question about an image. Raises UserError where the model cannot be had."""
    import torch

    from sd_scripts.finetune.captioning import load_blip2

    processor, model, device, dtype = load_blip2(name)

    def ask(image: Image, question: str) -> str:
        inputs = processor(images=image, text=question, return_tensors="pt").to(device, dtype)
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        text = str(processor.batch_decode(made, skip_special_tokens=True)[0])
        return text.split("Answer:")[-1].strip()

    return ask


def caption(ask: Ask, image: Image, subject: str) -> str:
    """`photo of ..., feature, action, place, light, angle`; empty answers and those that repeat others are left out."""
    parts = [f"photo of {subject}" if subject else ask(image, "a photo of")]
    for question in QUESTIONS:
        answer = ask(image, question.format(subject=subject or "it")).split("\n")[0].strip(" .,")
        if answer.lower() not in _EMPTY and not any(answer.lower() in part.lower() for part in parts):
            parts.append(answer)
    return ", ".join(parts)


def jobs_of(root: Path, overwrite: bool) -> tuple[list[tuple[Path, str]], int]:
    """Pictures and what they show, and how many are left out because they have a caption. Raises UserError."""
    folders = [(root, "")]
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            found = parse_class_folder(path.name)
            folders.append((path, (found[1] if found else path.name).replace("_", " ").strip()))
    pictures = [(picture, subject) for path, subject in folders for picture in find_pictures(path)]
    if not pictures:
        raise UserError(f"There are no pictures in {root} or its folders.", "path")
    todo = [(picture, subject) for picture, subject in pictures if overwrite or not beside(picture, ".txt").exists()]
    return todo, len(pictures) - len(todo)


def describe_folder(root: Path, ask: Callable[[], Ask], overwrite: bool) -> None:
    """Write a .txt caption beside every picture. Raises UserError."""
    from PIL import Image

    from sd_scripts.data.image import load_picture

    todo, left_out = jobs_of(root, overwrite)
    ticker = Ticker("captions", len(todo))
    for number, (picture, subject) in enumerate(todo):
        image = Image.fromarray(load_picture(picture).pixels)
        write_caption(beside(picture, ".txt"), caption(ask(), image, subject) + "\n")
        ticker.at(number + 1)
    say(f"{len(todo)} captions written" + (f", {left_out} were there already" if left_out else ""))


def work(options: Blip2Options) -> None:
    """Describe one folder, or one after the other as they are typed in; the model is loaded once. Raises UserError."""
    loaded: list[Ask] = []

    def ask() -> Ask:
        if not loaded:
            say(f"loading {options.model_id}")
            loaded.append(load(options.model_id))
        return loaded[0]

    path = options.path
    while True:
        if not path:
            try:
                path = input("Folder (empty to end): ").strip().strip("\"'")
            except EOFError:
                return
            if not path:
                return
        describe_folder(folder(path, "path"), ask, options.overwrite)
        if not options.interactive:
            return
        path = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)
