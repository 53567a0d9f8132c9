"""CLIP's vocabulary from the shipped merges, and the files of a tokenizer folder, without the tokenizer itself."""

from __future__ import annotations

import json

from sd_scripts.models.assets import clip_merges, model_config, tokenizer_pipeline

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MODEL_LENGTH = 77


def byte_symbols() -> list[str]:
    """The 256 printable symbols that stand for the bytes, in the order in which CLIP's vocabulary lists them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id: the byte symbols, the same ending a word, one token a merge, and the two marks (49,408 in all)."""
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + [left + right for left, right in merges] + [BOS, EOS]
    return {token: index for index, token in enumerate(tokens)}


def tokenizer_files(version: str, number: int = 1) -> dict[str, str]:
    """File name -> content of a tokenizer folder that every version of transformers reads.

    Args:
        version: "sd1", "sd2" or "sdxl".
        number: 2 for SDXL's second text encoder.
    """
    merges = clip_merges()
    vocabulary = clip_vocabulary(merges)
    pad = model_config(version)["tokenizer" if number == 1 else f"tokenizer_{number}"]["pad_token"]
    pipeline = tokenizer_pipeline()
    pipeline["model"] |= {"vocab": vocabulary, "merges": merges}
    if pad != EOS and number == 1:
        # SD2 takes every "!" for filling; SDXL's second tokenizer fills with it and still reads it as a word
        mark = dict(pipeline["added_tokens"][0])
        pipeline["added_tokens"].insert(0, mark | {"id": vocabulary[pad], "content": pad})
    config = {
        "backend": "tokenizers",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": MODEL_LENGTH,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": EOS,
    }
    return {
        "tokenizer.json": json.dumps(pipeline, indent=2, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "vocab.json": json.dumps(vocabulary, indent=2) + "\n",
        "merges.txt": merges_text(merges),
    }


def merges_text(merges: list[tuple[str, str]]) -> str:
    """The merges as older tokenizers read them."""
    return "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
