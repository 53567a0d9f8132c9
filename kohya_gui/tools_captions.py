"""The records of the tools for captions and groups of pictures."""

from kohya_gui.tools_record import Shelf, Tool
from sd_scripts.schema.tools import GroupImagesOptions
from sd_scripts.schema.tools_captions import (
    Blip2CaptionOptions,
    BlipOptions,
    EditCaptionsOptions,
    GitOptions,
    TaggerOptions,
)

_TAGGERS = tuple(
    f"SmilingWolf/{name}"
    for name in (
        "wd-v1-4-convnext-tagger-v2",
        "wd-v1-4-convnextv2-tagger-v2",
        "wd-v1-4-vit-tagger-v2",
        "wd-v1-4-swinv2-tagger-v2",
        "wd-v1-4-moat-tagger-v2",
        "wd-swinv2-tagger-v3",
        "wd-vit-tagger-v3",
        "wd-convnext-tagger-v3",
        "wd-eva02-large-tagger-v3",
    )
)

TOOLS = (
    Tool(
        "basic_caption",
        "Basic",
        "Write one caption for all pictures, add words to captions, or replace words in them.",
        "sd_scripts/tools/edit_captions.py",
        EditCaptionsOptions,
        ("images_dir", "caption_ext", "overwrite", "caption_text", "prefix", "postfix", "find_text", "replace_text",
         "recursive"),
        "images_dir",
        "Caption images",
        wide=("images_dir",),
        blanks=("find_text", "replace_text"),
    ),
    Tool(
        "blip_caption",
        "BLIP",
        "Describe every picture in a sentence by BLIP.",
        "sd_scripts/finetune/make_captions.py",
        BlipOptions,
        ("train_data_dir", "caption_extension", "overwrite", "prefix", "postfix", "batch_size", "beam_search",
         "num_beams", "top_p", "max_length", "min_length", "caption_weights", "recursive", "seed"),
        "train_data_dir",
        "Caption images",
        gpu=True,
        start={"caption_extension": ".txt", "beam_search": True},
        wide=("train_data_dir", "caption_weights"),
    ),
    Tool(
        "blip2_caption",
        "BLIP-2",
        "Describe every picture in a sentence by BLIP-2, which sees more and needs more memory.",
        "sd_scripts/finetune/make_captions_by_blip2.py",
        Blip2CaptionOptions,
        ("train_data_dir", "caption_extension", "overwrite", "prefix", "postfix", "do_sample", "num_beams",
         "repetition_penalty", "length_penalty", "temperature", "top_p", "min_new_tokens", "max_new_tokens",
         "batch_size", "model_id", "recursive", "seed"),
        "train_data_dir",
        "Caption images",
        gpu=True,
        wide=("train_data_dir", "model_id"),
    ),
    Tool(
        "git_caption",
        "GIT",
        "Describe every picture in a sentence by GIT.",
        "sd_scripts/finetune/make_captions_by_git.py",
        GitOptions,
        ("train_data_dir", "caption_extension", "overwrite", "prefix", "postfix", "batch_size",
         "max_data_loader_n_workers", "max_length", "model_id", "remove_words", "recursive"),
        "train_data_dir",
        "Caption images",
        gpu=True,
        start={"caption_extension": ".txt", "max_data_loader_n_workers": 2, "max_length": 75},
        wide=("train_data_dir", "model_id"),
    ),
    Tool(
        "wd14_caption",
        "WD14",
        "Write tags for every picture by a WD14 tagger.",
        "sd_scripts/finetune/tag_images_by_wd14_tagger.py",
        TaggerOptions,
        ("train_data_dir", "caption_extension", "caption_separator", "undesired_tags", "prefix", "postfix",
         "overwrite", "append_tags", "remove_underscore", "recursive", "debug", "frequency_tags", "repo_id",
         "force_download", "general_threshold", "character_threshold", "always_first_tags", "tag_replacement",
         "character_tag_expand", "character_tags_first", "use_rating_tags", "use_rating_tags_as_last_tag",
         "batch_size", "max_data_loader_n_workers", "model_dir"),
        "train_data_dir",
        "Caption images",
        gpu=True,
        start={
            "remove_underscore": True,
            "debug": True,
            "frequency_tags": True,
            "repo_id": "SmilingWolf/wd-v1-4-convnextv2-tagger-v2",
            "general_threshold": 0.35,
            "character_threshold": 0.35,
            "batch_size": 8,
            "max_data_loader_n_workers": 2,
        },
        sent={"onnx": True},
        changes={"repo_id": {"choices": _TAGGERS, "custom": True}},
        wide=("train_data_dir",),
        blanks=("caption_separator",),
    ),
    Tool(
        "group_images",
        "Group images",
        "Sort pictures by shape into groups of equal size and crop each group to one shape, so that batches are "
        "full.",
        "sd_scripts/tools/group_images.py",
        GroupImagesOptions,
        ("input_folder", "output_folder", "group_size", "include_subfolders", "do_not_copy_other_files", "pad",
         "caption", "caption_ext", "overwrite"),
        "output_folder",
        "Group images",
        start={"group_size": 4},
        wide=("input_folder", "output_folder"),
    ),
)  # fmt: skip

SHELVES = (
    Shelf(
        "captioning",
        "Captioning",
        ("basic_caption", "blip_caption", "blip2_caption", "git_caption", "wd14_caption"),
        manual=True,
    ),
    Shelf("group", "Group images", ("group_images",)),
)
