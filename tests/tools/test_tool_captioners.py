"""BLIP, GIT and BLIP-2 with small random models of the real classes: every picture gets its own words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from script_kit import Run
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
)

from sd_scripts.events import read_events
from sd_scripts.finetune import make_captions, make_captions_by_blip2, make_captions_by_git
from sd_scripts.finetune.blip import renamed
from sd_scripts.finetune.make_captions_by_git import without_writing
from sd_scripts.tools import blip2 as blip2_tool

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "cat", "dog", "red", "on", "table", "the"),
    *("moon", "green", "in", "under"),
]
VISION = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 16,
    "image_size": 64, "initializer_range": 0.02,
}  # fmt: skip
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}

TEXT_OPT = {
    "model_type": "opt", "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
    "word_embed_proj_dim": 64, "max_position_embeddings": 120, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip


def tokenizer(folder: Path, *more: str) -> BertTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *more]))
    return BertTokenizer.from_pretrained(str(folder))


def scaled_up(model: torch.nn.Module) -> None:
    """Random weights as drawn give every picture the same words; larger ones tell them apart."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embeddings.word" not in name:
                weight.mul_(200 if "crossattention.output" in name else 12)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny blip"
    words = tokenizer(folder, "[DEC]", "[ENC]")
    ids = {"bos_token_id": len(words) - 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = TEXT | ids | {"vocab_size": len(words), "max_position_embeddings": 40, "encoder_hidden_size": 64}
    torch.manual_seed(1)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION)).eval()
    scaled_up(model)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny git"
    words = tokenizer(folder)
    torch.manual_seed(2)
    config = GitConfig(
        vision_config=VISION, vocab_size=len(words), max_position_embeddings=64, bos_token_id=2, eos_token_id=3, **TEXT
    )
    model = GitForCausalLM(config).eval()
    scaled_up(model)
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    GitProcessor(processor, words).save_pretrained(folder)
    return folder


def texts(folder: Path, ending: str) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob(f"*{ending}")}


def test_blip_writes_captions(pictures: Path, blip: Path, script: Run) -> None:
    argv = [pictures, "--caption_weights", blip, "--caption_extension", ".cap", "--beam_search", "--num_beams", 2]
    done = script("finetune/make_captions.py", *argv, "--max_length", 12, "--batch_size", 3, "--debug")
    assert done.returncode == 0, done.stderr
    found = texts(pictures, ".cap")
    assert len(found) == 4 and all(text.endswith("\n") and "\n" not in text[:-1] for text in found.values())
    assert len(set(found.values())) > 1 and "[" not in "".join(found.values())
    assert all(not text.startswith("a picture of a picture of") for text in found.values())
    assert "4 captions written" in done.stdout and str(pictures / "猫.png") in done.stdout


def test_the_original_layout_gives_the_same_words(pictures: Path, blip: Path, tmp_path: Path) -> None:
    beam = ["--beam_search", "--max_length", "12", "--caption_extension"]
    assert make_captions.main([str(pictures), "--caption_weights", str(blip), *beam, ".a"]) == 0
    weights = BlipForConditionalGeneration.from_pretrained(blip).state_dict()
    original = {}
    for name, value in weights.items():
        for pattern, replacement in (
            (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
            (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
            (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
            (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
            (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
            (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
            (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
            (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
        ):
            name = re.sub(pattern, replacement, name)
        original[name] = value
    assert not any(name.startswith("vision_model") for name in original)
    assert renamed(original).keys() == weights.keys()
    folder = tmp_path / "old blip"
    folder.mkdir()
    for path in blip.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save({"model": original}, folder / "model.pth")
    assert make_captions.main([str(pictures), "--caption_weights", str(folder / "model.pth"), *beam, ".b"]) == 0
    assert texts(pictures, ".a") == texts(pictures, ".b")


def test_captions_by_chance_follow_the_seed(pictures: Path, blip: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        argv = [str(pictures), "--caption_weights", str(blip), "--caption_extention", ".s", "--seed", str(seed)]
        assert make_captions.main([*argv, "--max_length", "14", "--top_p", "1", "--overwrite"]) == 0
        found.append(texts(pictures, ".s"))
    assert found[0] == found[1] != found[2]


def test_captions_by_hand_stay(pictures: Path, blip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "rocket.caption").write_text("by hand")
    argv = [str(pictures), "--caption_weights", "nothing/is loaded"]
    assert make_captions.main(argv) == 0
    assert "0 captions written, 4 were there already" in capsys.readouterr().out
    assert (pictures / "rocket.caption").read_text() == "by hand"


def test_git_writes_captions(pictures: Path, git: Path, script: Run) -> None:
    argv = [pictures, "--model_id", git, "--caption_extension", ".git", "--max_length", 8, "--batch_size", 2]
    done = script("finetune/make_captions_by_git.py", *argv, "--remove_words")
    assert done.returncode == 0, done.stderr
    found = texts(pictures, ".git")
    assert len(found) == 4 and len(set(found.values())) > 1


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ('a shirt with the words "hello world" on it', "a shirt"),
        ("a cat with the number 5 on the back sitting down", "a cat sitting down"),
        ("a girl with a sign that says 'stop' in the street", "a girl in the street"),
        ("a poster that says the word love", "a poster"),
        ("a man with a hat on his head", "a man with a hat on his head"),
    ],
)
def test_words_in_pictures_are_taken_out(caption: str, cleaned: str) -> None:
    assert without_writing(caption) == cleaned


@pytest.mark.parametrize("weights", ["nobody/nothing", "https://example.org/x.pth", "none.pth", "{file}"])
def test_a_model_that_cannot_be_had(
    weights: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pth"
    torch.save({"model": {"x": torch.zeros(2)}}, other)
    name = weights.format(file=other)
    assert make_captions.main([str(pictures), "--caption_weights", name, "--caption_extension", ".n"]) == 2
    if "pth" not in weights and "{" not in weights:
        assert make_captions_by_git.main([str(pictures), "--model_id", name, "--caption_extension", ".n"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.strip().splitlines()[-1].startswith("make_captions")
    assert not texts(pictures, ".n")


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny blip2"
    words = tokenizer(folder, "<image>", "question", ":", "what", "answer", "photo", "is", "?")
    torch.manual_seed(3)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=TEXT | {"encoder_hidden_size": 64, "vocab_size": 30},
        text_config=TEXT_OPT | {"vocab_size": len(words)},
        num_query_tokens=2,
        image_token_index=len(WORDS),
    )
    model = Blip2ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 64, "width": 64})
    Blip2Processor(images, words, num_query_tokens=2).save_pretrained(folder)
    return folder


def test_blip2_describes_folders(pictures: Path, blip2: Path, script: Run) -> None:
    below = pictures / "3_a grey cat"
    below.mkdir()
    (below / "猫 1.png").write_bytes((pictures / "猫.png").read_bytes())
    done = script("tools/blip2-for-sd/main.py", pictures, "--model_id", blip2)
    assert done.returncode == 0, done.stderr
    assert "1 captions written, 4 were there already" in done.stdout
    assert (below / "猫 1.txt").read_text(encoding="utf-8").startswith("photo of a grey cat")
    assert (pictures / "猫.txt").read_text(encoding="utf-8").startswith("1girl")


def test_blip2_writes_captions_by_search_and_by_chance(pictures: Path, blip2: Path, tmp_path: Path) -> None:
    argv = [str(pictures), "--model_id", str(blip2), "--caption_extension", ".b2", "--overwrite", "--batch_size", "3"]
    argv += ["--min_new_tokens", "3", "--max_new_tokens", "6"]
    job = tmp_path / "a job"
    words = ["--num_beams", "2", "--prefix", "ohwx,", "--postfix", ", best", "--job_dir", str(job)]
    assert make_captions_by_blip2.main([*argv, *words]) == 0
    found = texts(pictures, ".b2")
    assert len(found) == 4 and all(text.startswith("ohwx,") and text.endswith(", best\n") for text in found.values())
    events, _ = read_events(job / "events.jsonl")
    assert [event["kind"] for event in events if event["kind"] != "phase"] == ["start", *["save"] * 4, "end"]
    assert events[-1]["status"] == "done" and events[-1]["reason"] == "4 captions written"
    drawn = []
    for seed in ("1", "1", "2"):
        assert make_captions_by_blip2.main([*argv, "--do_sample", "--seed", seed]) == 0
        drawn.append(texts(pictures, ".b2"))
    assert drawn[0] == drawn[1] != drawn[2]
    assert make_captions_by_blip2.main([*argv, "--min_new_tokens", "9"]) == 2


def test_blip2_answers_in_the_order_of_a_prompt() -> None:
    answers = iter(["black ears.", "sitting", "unknown", "Sitting", "from above\nQuestion: more?"])
    asked: list[str] = []

    def ask(image: Image.Image, question: str) -> str:
        asked.append(question)
        return next(answers)

    text = blip2_tool.caption(ask, Image.new("RGB", (8, 8)), "a grey cat")
    assert text == "photo of a grey cat, black ears, sitting, from above"
    assert len(asked) == 5 and "what is a grey cat doing?" in asked[1]


def test_blip2_refuses(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert blip2_tool.main([str(tmp_path / "none")]) == 2
    assert blip2_tool.main([str(pictures), "--overwrite", "--model_id", "nobody/nothing"]) == 2
    assert blip2_tool.main([str(pictures), "--overwrite", "--model_id", "not there"]) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.strip().splitlines()][-1] == "main.py"
