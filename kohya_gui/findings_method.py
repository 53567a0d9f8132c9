"""What is wrong for one way of training: families it cannot train, words that cannot be learned, precision, sizes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from kohya_gui import clip_words, machine
from kohya_gui.dataset_view import DatasetView
from kohya_gui.problem import Problem
from sd_scripts.schema.captions import read_caption
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.values import parse_resolution

_MODEL = "pretrained_model_name_or_path"
_SAYS = {
    "controlnet": "The ControlNet tab trains Stable Diffusion 1 and 2 only",
    "xti": "Vectors for each block (XTI) are for Stable Diffusion 1 and 2 only",
}
_MOST_READ = 3000  # captions that are read for the new word at each look
_USUAL_SIDE = {"sd1": 512, "sd2": 512, "sd2-v": 768, "sdxl": 1024}
_NAMES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sd2-v": "Stable Diffusion 2 (v)", "sdxl": "SDXL"}


def family_fits(values: Mapping[str, Any], trainer: str, family: str) -> Iterator[Problem]:
    """The trainer is for the family of the base model."""
    found = COMMANDS[trainer]
    if found.family == "sd" and family == "sdxl":
        said = _SAYS.get(found.method, "This tab trains Stable Diffusion 1 and 2 only")
        hint = "Choose another model, or the tab ControlNet-LLLite." if found.method == "controlnet" else ""
        yield Problem("error", _MODEL, f"{said}, but the base model is SDXL.", hint or "Choose another model.")
    elif found.family == "sdxl" and family != "sdxl" and values.get(_MODEL):
        said = "ControlNet-LLLite is for SDXL only" if found.method == "lllite" else "This tab trains SDXL only"
        text = f"{said}, but the base model is {_NAMES[family]}."
        yield Problem("error", _MODEL, text, "Choose an SDXL model.")


def resolution(values: Mapping[str, Any], family: str) -> Iterator[Problem]:
    """The size to train at is near the one that the model was made for."""
    try:
        width, height = parse_resolution(str(values.get("resolution") or ""))
    except UserError:
        return
    usual, side = _USUAL_SIDE[family], (width * height) ** 0.5
    # tiny sizes are tried on purpose
    if 256 <= side < usual * 0.7:
        text = f"{_NAMES[family]} was made for pictures of {usual}; at {width}x{height} it learns blurred ones."
        yield Problem("warning", "resolution", text, f"{usual} is usual.", {"resolution": f"{usual},{usual}"})
    elif side > usual * 1.6:
        text = f"{_NAMES[family]} was made for pictures of {usual}; {width}x{height} costs much and seldom helps."
        yield Problem("warning", "resolution", text, f"{usual} is usual.", {"resolution": f"{usual},{usual}"})


def precision(values: Mapping[str, Any], family: str) -> Iterator[Problem]:
    """The machine can compute in this precision, and the VAE survives it."""
    chosen, cards = values.get("mixed_precision"), machine.gpus()
    old = [card for card in cards if card.capability and card.capability < (8, 0)]
    if chosen == "bf16" and old and len(old) == len(cards):
        text = f"{old[0].name} does not compute in bf16."
        yield Problem("error", "mixed_precision", text, "Choose fp16.", {"mixed_precision": "fp16"})
    vae = os.path.basename(str(values.get("vae") or "")).lower()
    if chosen == "fp16" and family == "sdxl" and cards and not values.get("no_half_vae") and "fix" not in vae:
        text = "SDXL's VAE overflows in fp16: pictures turn black and the loss becomes NaN."
        yield Problem("warning", "no_half_vae", text, "Keep the VAE in 32 bits.", {"no_half_vae": True})


def new_word(values: Mapping[str, Any], view: DatasetView) -> Iterator[Problem]:
    """The word of an embedding is new, its start has as many tokens as it has vectors, and captions have it."""
    word, vectors = str(values.get("token_string") or "").strip(), int(values.get("num_vectors_per_token") or 1)
    if not word:
        return
    names = [word, *(f"{word}{number}" for number in range(1, vectors))]
    taken = next((name for name in names if clip_words.is_token(name)), None)
    if taken is not None:
        better = f"{word}-new"
        text = f"{taken!r} is a token of the text encoder already, so it cannot be a new word."
        yield Problem("error", "token_string", text, "Choose a word that does not exist.", {"token_string": better})
    elif clip_words.is_word(word):
        text = f"{word!r} is an ordinary word; prompts with it would mean the new one from then on."
        yield Problem("warning", "token_string", text, "Choose a word that does not exist.")
    start = str(values.get("init_word") or "").strip()
    count = clip_words.count_tokens(start) if start else vectors
    if count > vectors or 1 < count < vectors:
        what = "they are repeated" if count < vectors else "the rest is left out"
        text = f"{start!r} has {count} tokens for {vectors} vectors: {what}."
        yield Problem("warning", "init_word", text, f"Set the vectors to {count}.", {"num_vectors_per_token": count})
    yield from _word_in_captions(word, values, view)


def _word_in_captions(word: str, values: Mapping[str, Any], view: DatasetView) -> Iterator[Problem]:
    if values.get("use_object_template") or values.get("use_style_template") or view.images > _MOST_READ:
        return
    captions = list(_captions(view))
    without = [caption for caption in captions if word.lower() not in caption.lower()]
    if captions and len(without) == len(captions):
        text = f"None of the {len(captions)} captions has the word {word!r} in it, so nothing can be learned."
        fix = {"caption_prefix": word}
        yield Problem("error", "token_string", text, "Put it before every caption, or use ready sentences.", fix)
    elif without:
        text = f"{len(without)} of {len(captions)} captions do not have the word {word!r} in them."
        yield Problem("warning", "token_string", text, "Nothing is learned from their pictures.")


def _captions(view: DatasetView) -> Iterable[str]:
    """The words of every training picture as the trainer reads them, with what is put before and behind."""
    for folder in view.folders:
        if folder.regularisation:
            continue
        before, behind = folder.rules.caption_prefix, folder.rules.caption_suffix
        for picture in folder.pictures:
            own = picture.text if picture.caption_path is None else _read(picture.caption_path, *_stamp(picture))
            yield " ".join(part for part in (before, own or folder.class_tokens, behind) if part)


def _stamp(picture: Any) -> tuple[int, int]:
    try:
        found = os.stat(picture.caption_path)
    except OSError:
        return 0, -1
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=20_000)
def _read(path: str, changed: int, length: int) -> str:
    """A caption file's words; "" if it cannot be read, which is said elsewhere."""
    try:
        return read_caption(path) or ""
    except UserError:
        return ""
