"""Options of the scripts that make captions and metadata files; the rules are those of tools.py."""

from .option import Given, Is, option, section

OVERWRITE_CAPTIONS = "Write over captions that are there already. Without it these pictures are left out."
_FOLDER = "Folder with the pictures."
_EXTENSION = "Ending of the caption files."
_EXTENTION = "The same as caption_extension, in the spelling of an older version."
_RECURSIVE = "Take the pictures of all folders below, too."
_WORKERS = "Threads that read pictures ahead; few if not given."
_DEBUG = "Print what is found for every picture."
_BATCH = "Pictures in one pass of the model; more is faster and takes more memory."
_FULL_PATH = "Use the whole path as a picture's key in the metadata, not only its name. Needed with recursive."
_PREFIX = "Words to put in front of every caption that is written."
_POSTFIX = "Words to put behind every caption that is written."
_IN_JSON = "Metadata file to add to; out_json itself if it exists and this is not given."
_OUT_JSON = "Metadata file to write."


@section("Merge captions")
class MergeCaptionsOptions:
    """Collect caption files into one metadata file."""

    train_data_dir: str = option(None, _FOLDER, kind="folder", flag=False)
    out_json: str = option(None, _OUT_JSON, kind="file", flag=False)
    in_json: str | None = option(None, _IN_JSON, kind="file")
    caption_extention: str | None = option(None, _EXTENTION)
    caption_extension: str = option(".caption", _EXTENSION)
    full_path: bool = option(False, _FULL_PATH)
    recursive: bool = option(False, _RECURSIVE)
    debug: bool = option(False, _DEBUG)


@section("Merge tags")
class MergeTagsOptions:
    """Collect tag files into one metadata file."""

    train_data_dir: str = option(None, _FOLDER, kind="folder", flag=False)
    out_json: str = option(None, _OUT_JSON, kind="file", flag=False)
    in_json: str | None = option(None, _IN_JSON, kind="file")
    full_path: bool = option(False, _FULL_PATH)
    recursive: bool = option(False, _RECURSIVE)
    caption_extension: str = option(".txt", "Ending of the tag files.")
    debug: bool = option(False, _DEBUG)


@section("Clean captions and tags")
class CleanOptions:
    """Simplify the captions and tags of a metadata file: contradictions, repetitions and ratings go."""

    in_json: str = option(None, "Metadata file to read.", kind="file", flag=False)
    out_json: str = option(None, _OUT_JSON, kind="file", flag=False)
    debug: bool = option(False, "Print every caption that changes, before and after.")


@section("Prepare buckets and latents")
class PrepareBucketsOptions:
    """Choose every picture's training size, note it in the metadata, and keep the latents in .npz files."""

    train_data_dir: str = option(None, _FOLDER, kind="folder", flag=False)
    in_json: str = option(None, "Metadata file to read.", kind="file", flag=False)
    out_json: str = option(None, _OUT_JSON, kind="file", flag=False)
    model_name_or_path: str = option(
        None, "Model or VAE that encodes: a file, a diffusers folder or a hub name.", kind="model", flag=False
    )
    v2: bool = option(False, "Not needed: the VAE of Stable Diffusion 1 and 2 is told from the file itself.")
    batch_size: int = option(1, _BATCH, minimum=1)
    max_data_loader_n_workers: int | None = option(None, _WORKERS, minimum=0)
    max_resolution: str = option("512,512", "Training area as width,height.")
    min_bucket_reso: int = option(256, "Smallest side of a training size.", minimum=1, unit="pixels")
    max_bucket_reso: int = option(1024, "Largest side of a training size.", minimum=1, unit="pixels")
    bucket_reso_steps: int = option(64, "Sides are multiples of this.", minimum=1, unit="pixels")
    bucket_no_upscale: bool = option(False, "Never enlarge a picture.")
    mixed_precision: str = option("no", "Number format of the VAE.", choices=("no", "fp16", "bf16"))
    full_path: bool = option(False, _FULL_PATH)
    flip_aug: bool = option(False, "Keep the latents of the mirrored picture, too.")
    skip_existing: bool = option(False, "Keep .npz files that hold the right size; otherwise all are made anew.")
    recursive: bool = option(False, _RECURSIVE)


@section("BLIP captions")
class BlipOptions:
    """Write a caption for every picture, by BLIP."""

    train_data_dir: str = option(None, _FOLDER, label="Image folder to caption", kind="folder", flag=False)
    caption_weights: str = option(
        "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_large_caption.pth",
        "The model: a transformers folder, a hub name, or a .pth file in BLIP's original layout.",
        label="BLIP model",
        kind="model",
    )
    caption_extention: str | None = option(None, _EXTENTION)
    caption_extension: str = option(".caption", _EXTENSION, label="Caption file extension")
    beam_search: bool = option(
        False, "Search for the likeliest words instead of drawing them by chance.", label="Use beam search"
    )
    batch_size: int = option(1, _BATCH, minimum=1)
    max_data_loader_n_workers: int | None = option(None, _WORKERS, label="Number of workers", minimum=0)
    num_beams: int = option(
        1,
        "How many beginnings beam search follows at once.",
        label="Number of beams",
        minimum=1,
        when=Is("beam_search", True),
    )
    top_p: float = option(
        0.9,
        "Draw from the likeliest words that together have this share.",
        minimum=0,
        maximum=1,
        when=Is("beam_search", False),
    )
    max_length: int = option(75, "Longest caption.", minimum=1, unit="tokens")
    min_length: int = option(5, "Shortest caption.", minimum=0, unit="tokens")
    seed: int = option(42, "Start of the random numbers.")
    debug: bool = option(False, _DEBUG, label="Verbose logging")
    recursive: bool = option(False, _RECURSIVE)
    prefix: str = option("", _PREFIX, label="Prefix")
    postfix: str = option("", _POSTFIX, label="Postfix")
    overwrite: bool = option(False, OVERWRITE_CAPTIONS, label="Overwrite existing captions")


@section("GIT captions")
class GitOptions:
    """Write a caption for every picture, by GIT."""

    train_data_dir: str = option(None, _FOLDER, label="Image folder to caption", kind="folder", flag=False)
    caption_extension: str = option(".caption", _EXTENSION, label="Caption file extension")
    model_id: str = option(
        "microsoft/git-large-textcaps",
        "The model: a transformers folder or a hub name.",
        label="GIT model",
        kind="model",
    )
    batch_size: int = option(1, _BATCH, minimum=1)
    max_data_loader_n_workers: int | None = option(None, _WORKERS, label="Number of workers", minimum=0)
    max_length: int = option(50, "Longest caption.", minimum=1, unit="tokens")
    remove_words: bool = option(
        False,
        "Take out what the model says about writing in the picture, which it often invents.",
        label="Remove invented writing",
    )
    debug: bool = option(False, _DEBUG, label="Verbose logging")
    recursive: bool = option(False, _RECURSIVE)
    prefix: str = option("", _PREFIX, label="Prefix")
    postfix: str = option("", _POSTFIX, label="Postfix")
    overwrite: bool = option(False, OVERWRITE_CAPTIONS, label="Overwrite existing captions")


@section("WD14 tags")
class TaggerOptions:
    """Write tags for every picture, by a WD14 tagger in ONNX format."""

    train_data_dir: str = option(None, _FOLDER, label="Image folder to caption", kind="folder", flag=False)
    repo_id: str = option(
        "SmilingWolf/wd-v1-4-convnext-tagger-v2", "The tagger's name on the Hugging Face Hub.", label="Model"
    )
    model_dir: str = option(
        "wd14_tagger_model", "Folder in which taggers are kept.", label="Folder of models", kind="folder"
    )
    force_download: bool = option(
        False, "Download the tagger again although it is there.", label="Force model re-download"
    )
    batch_size: int = option(1, _BATCH, minimum=1)
    max_data_loader_n_workers: int | None = option(None, _WORKERS, label="Number of workers", minimum=0)
    caption_extention: str | None = option(None, _EXTENTION)
    caption_extension: str = option(".txt", _EXTENSION, label="Caption file extension")
    thresh: float = option(0.35, "Certainty from which a tag is written.", label="Threshold", minimum=0, maximum=1)
    general_threshold: float | None = option(
        None, "The same for general tags; as thresh if not given.", minimum=0, maximum=1
    )
    character_threshold: float | None = option(
        None, "The same for names of characters; as thresh if not given.", minimum=0, maximum=1
    )
    recursive: bool = option(False, _RECURSIVE)
    remove_underscore: bool = option(
        False,
        "Write blanks instead of underscores, except in faces like >_<.",
        label="Replace underscores with spaces",
    )
    debug: bool = option(False, _DEBUG, label="Verbose logging")
    undesired_tags: str = option("", "Tags never to write, separated by commas.")
    frequency_tags: bool = option(False, "Print how often each tag was written.", label="Show tags frequency")
    onnx: bool = option(False, "Accepted for older command lines: ONNX is always used.")
    append_tags: bool = option(
        False,
        "Add new tags behind those that the file has, instead of leaving the file out.",
        label="Append tags",
    )
    always_first_tags: str = option(
        "", "Tags that go to the front where they are found, separated by commas, in this order."
    )
    tag_replacement: str = option(
        "", "Tags to write in place of others, as old,new;old,new. A backslash makes , or ; a part of a tag."
    )
    character_tag_expand: bool = option(
        False, "Write a character's tag with a series in brackets as two tags: the name and the series."
    )
    character_tags_first: bool = option(False, "Write names of characters in front of general tags.")
    use_rating_tags: bool = option(False, "Write the likeliest rating of the picture in front of all tags.")
    use_rating_tags_as_last_tag: bool = option(False, "Write the likeliest rating of the picture behind all tags.")
    caption_separator: str = option(", ", "What stands between two tags.")
    prefix: str = option("", _PREFIX, label="Prefix")
    postfix: str = option("", _POSTFIX, label="Postfix")
    overwrite: bool = option(False, OVERWRITE_CAPTIONS, label="Overwrite existing captions")


@section("Same caption")
class CaptionOptions:
    """Write the same caption beside every picture of a folder."""

    image_folder: str = option(None, _FOLDER, kind="folder", flag=False)
    file_pattern: str = option(
        "*.png, *.jpg, *.jpeg, *.webp", "Which files are pictures; * and ? stand for any letters, commas separate."
    )
    caption_file_ext: str = option(".caption", _EXTENSION)
    overwrite: bool = option(False, OVERWRITE_CAPTIONS)
    caption_text: str | None = option(None, "The caption. Give this or caption_file.", kind="long")
    caption_file: str | None = option(None, "A file whose text is the caption.", kind="file")


@section("Clean up captions")
class CleanupOptions:
    """Take common tags about a person's looks out of the tag files of a folder."""

    folder_path: str = option(None, "Folder with the tag files.", kind="folder", flag=False)
    extension: str = option(".txt", "Ending of the tag files.", aliases=("e",))
    keywords: list[str] | None = option(None, "Take out these tags instead of the usual ones.", nargs="+")


@section("Captions from names")
class TextFromNamesOptions:
    """Write a .txt caption beside every picture: its file name up to the first underscore."""

    folder_path: str = option(None, _FOLDER, kind="folder", flag=False)
    overwrite: bool = option(False, OVERWRITE_CAPTIONS)


@section("BLIP-2 captions")
class Blip2Options:
    """Describe pictures by BLIP-2 in the words of a Stable Diffusion prompt; the folder's name is the subject."""

    path: str = option(
        "",
        "Folder whose folders hold the pictures, named by what they show; asked for if not given.",
        kind="folder",
        nargs="?",
        flag=False,
    )
    interactive: bool = option(False, "Ask for further folders afterwards, with the model kept in memory.")
    model_id: str = option("Salesforce/blip2-opt-2.7b", "The model: a transformers folder or a hub name.", kind="model")
    overwrite: bool = option(False, OVERWRITE_CAPTIONS)


@section("BLIP-2 captions by sampling or search")
class Blip2CaptionOptions:
    """Write a caption for every picture, by BLIP-2."""

    train_data_dir: str = option(None, _FOLDER, label="Image folder to caption", kind="folder", flag=False)
    model_id: str = option(
        "Salesforce/blip2-opt-2.7b",
        "The model: a transformers folder or a hub name.",
        label="BLIP-2 model",
        kind="model",
    )
    caption_extension: str = option(".txt", _EXTENSION, label="Caption file extension")
    batch_size: int = option(1, _BATCH, minimum=1)
    max_data_loader_n_workers: int | None = option(None, _WORKERS, label="Number of workers", minimum=0)
    do_sample: bool = option(
        False, "Draw words by chance (nucleus sampling) instead of searching for the likeliest.", label="Sample"
    )
    num_beams: int = option(
        16,
        "How many beginnings beam search follows at once.",
        label="Number of beams",
        minimum=1,
        maximum=64,
        when=Is("do_sample", False),
    )
    repetition_penalty: float = option(
        1.5,
        "How much words that were said already are avoided; 1 is not at all.",
        label="Repeat penalty",
        minimum=1,
        maximum=5,
        when=Is("do_sample", False),
    )
    length_penalty: float = option(
        1.0,
        "Above 0 longer captions are liked, below 0 shorter ones.",
        minimum=-1,
        maximum=2,
        when=Is("do_sample", False),
    )
    temperature: float = option(
        1.0, "Below 1 the likely words are drawn even more often.", minimum=0.05, maximum=2, when=Is("do_sample", True)
    )
    top_p: float = option(
        0.9,
        "Draw from the likeliest words that together have this share.",
        minimum=0,
        maximum=1,
        when=Is("do_sample", True),
    )
    min_new_tokens: int = option(20, "Shortest caption.", minimum=0, maximum=300, unit="tokens")
    max_new_tokens: int = option(40, "Longest caption.", minimum=1, maximum=300, unit="tokens")
    seed: int = option(42, "Start of the random numbers.", when=Is("do_sample", True))
    debug: bool = option(False, _DEBUG, label="Verbose logging")
    recursive: bool = option(False, _RECURSIVE)
    prefix: str = option("", _PREFIX, label="Prefix")
    postfix: str = option("", _POSTFIX, label="Postfix")
    overwrite: bool = option(False, OVERWRITE_CAPTIONS, label="Overwrite existing captions")


@section("Basic captions")
class EditCaptionsOptions:
    """Write one caption for all pictures of a folder, or change the captions that are there."""

    images_dir: str = option(None, _FOLDER, label="Image folder to caption", kind="folder", flag=False)
    caption_ext: str = option(".txt", _EXTENSION, label="Caption file extension")
    overwrite: bool = option(
        False,
        "Also change captions that are there already. Without it only pictures without a caption get one.",
        label="Overwrite existing captions in folder",
    )
    caption_text: str = option("", "The caption for every picture.", label="Caption text", kind="long")
    prefix: str = option("", "Words to put in front.", label="Prefix to add to caption")
    postfix: str = option("", "Words to put behind.", label="Postfix to add to caption")
    find_text: str = option("", "Text to look for in captions that are there.", label="Find text")
    replace_text: str = option(
        "", "Text to put in its place; nothing takes it out.", label="Replacement text", when=Given("find_text")
    )
    recursive: bool = option(False, _RECURSIVE)
