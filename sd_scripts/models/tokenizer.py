"""CLIP's tokenizer built from the shipped merges, so that no hub and no cache folder is ever needed."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

from sd_scripts.models.assets import clip_merges, model_config
from sd_scripts.models.vocabulary import BOS, EOS, MODEL_LENGTH, clip_vocabulary
from sd_scripts.schema.errors import UserError

# Folder names under --tokenizer_cache_dir as sd-scripts writes them.
CACHE_NAMES = {
    "sd1": "openai_clip-vit-large-patch14",
    "sd2": "stabilityai_stable-diffusion-2",
    "sdxl": "openai_clip-vit-large-patch14",
    "sdxl_2": "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k",
}


def build_tokenizer(version: str, number: int = 1) -> CLIPTokenizer:
    """CLIP's tokenizer as a text encoder wants it padded: with the end mark, or with id 0.

    Args:
        version: "sd1", "sd2" or "sdxl".
        number: 2 for SDXL's second text encoder.
    """
    return _padded(_built(version, number), number)


def _padded(tokenizer: CLIPTokenizer, number: int) -> CLIPTokenizer:
    """SDXL's second tokenizer fills with id 0, and still reads a "!" in a text as the word it is.

    A tokenizer that is made with "!" for filling takes every "!" for filling, as SD2's does; only the id is changed
    here, after it is made, as kohya's trainers do it.
    """
    if number == 2:
        tokenizer.pad_token_id = 0
    return tokenizer


def _built(version: str, number: int) -> CLIPTokenizer:
    merges = clip_merges()
    pad = EOS if number == 2 else model_config(version)["tokenizer"]["pad_token"]
    return CLIPTokenizer(
        vocab=clip_vocabulary(merges),
        merges=merges,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=pad,
        model_max_length=MODEL_LENGTH,
    )


def build_tokenizers(version: str) -> list[CLIPTokenizer]:
    """The tokenizers of a model of `version`, one a text encoder."""
    return [build_tokenizer(version, number) for number in _numbers(version)]


def load_tokenizers(version: str, cache_dir: str | None = None) -> list[CLIPTokenizer]:
    """The tokenizers of a model of `version`, one a text encoder; see `load_tokenizer`. Raises UserError."""
    return [load_tokenizer(version, cache_dir, number) for number in _numbers(version)]


def _numbers(version: str) -> tuple[int, ...]:
    return (1, 2) if version == "sdxl" else (1,)


def load_tokenizer(version: str, cache_dir: str | None = None, number: int = 1) -> CLIPTokenizer:
    """A tokenizer of `version`; with `cache_dir` (--tokenizer_cache_dir) read from there, or written there once.

    Raises:
        UserError: the cached folder exists but holds no tokenizer of 49,408 tokens or more.
    """
    if not cache_dir:
        return build_tokenizer(version, number)
    folder = Path(cache_dir) / CACHE_NAMES[version if number == 1 else f"{version}_{number}"]
    if not folder.is_dir():
        tokenizer = _built(version, number)
        tokenizer.save_pretrained(str(folder))
        return _padded(tokenizer, number)
    tokenizer = None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, OverflowError, LookupError, TypeError) as error:
        raise _broken_cache(folder, str(error)) from error
    if len(tokenizer) < 49408:
        raise _broken_cache(folder, f"it knows only {len(tokenizer)} tokens")
    return _padded(tokenizer, number)


def _broken_cache(folder: Path, detail: str) -> UserError:
    return UserError(
        f"The tokenizer kept in {folder} cannot be used: {detail}.",
        key="tokenizer_cache_dir",
        hint="Delete that folder (it is made again) or leave the option empty.",
    )
