"""Which pictures and captions, and how they are prepared."""

from .option import Given, Is, option, section


@section("Dataset", place="Folders")
class DatasetOptions:
    """Pictures: where they are, how they are cut to size, and what is cached."""

    train_data_dir: str | None = option(
        None,
        "Folder with sub-folders named like 10_sks dog: the number is how often each picture is shown in an epoch, "
        "the rest is the "
        "caption of pictures without a caption file. Pictures directly in the folder count once.",
        label="Pictures",
        kind="folder",
        basic=True,
    )
    reg_data_dir: str | None = option(
        None,
        "Folder of regularisation pictures, in sub-folders like 1_dog. They hold the model back from turning every "
        "dog into yours; "
        "an epoch becomes twice as long.",
        label="Regularisation pictures",
        kind="folder",
        methods=("network", "full", "embedding", "xti"),
    )
    dataset_config: str | None = option(
        None,
        "A TOML or JSON file that describes several datasets and their folders. It takes the place of the picture "
        "folders given here.",
        label="Dataset description file",
        kind="file",
    )
    in_json: str | None = option(
        None,
        "Metadata file that lists pictures with captions and tags, as the fine-tuning tools write it. Goes with the "
        "picture folder.",
        label="Metadata file",
        kind="file",
    )
    conditioning_data_dir: str | None = option(
        None,
        "Folder with one mask or control picture of the same name for each training picture. Needed for a masked loss "
        "without alpha channels.",
        label="Masks or control pictures",
        kind="folder",
    )
    dataset_class: str | None = option(
        None,
        "Python class (package.module.Class) that supplies the pictures instead of the folders. For programmers.",
        label="Dataset class",
    )
    dataset_repeats: int = option(
        1,
        "How often each picture of the metadata file is shown in an epoch. Folders carry this number in their names "
        "instead.",
        label="Repeats with a metadata file",
        minimum=1,
        step=1,
        when=Given("in_json"),
    )
    train_batch_size: int = option(
        1,
        "Pictures learned from at once on each device. More is steadier and faster per picture, but needs more memory.",
        label="Batch size",
        minimum=1,
        step=1,
        unit="pictures",
        basic=True,
        place="Parameters",
    )
    resolution: str | None = option(
        None,
        "Size to train at, in pixels: one number for a square, or width,height. 512 for Stable Diffusion 1, 768 for "
        "its 2.x models at that size.",
        label="Resolution",
        aliases=("max_resolution",),
        unit="pixels",
        basic=True,
        place="Parameters",
    )
    enable_bucket: bool = option(
        False,
        "Train pictures in their own shape instead of cutting all to one. Leave on unless all pictures already have "
        "the training size.",
        label="Keep the pictures' shapes (buckets)",
        place="Parameters",
    )
    min_bucket_reso: int = option(
        256,
        "Shortest side that a bucket may have. Lower it only for very long or narrow pictures.",
        label="Smallest side",
        minimum=64,
        step=64,
        unit="pixels",
        when=Is("enable_bucket", True),
        place="Parameters",
    )
    max_bucket_reso: int = option(
        1024,
        "Longest side that a bucket may have; at least the resolution. Raise it for panoramas.",
        label="Largest side",
        minimum=64,
        step=64,
        unit="pixels",
        when=Is("enable_bucket", True),
        place="Parameters",
    )
    bucket_reso_steps: int = option(
        64,
        "Sides of buckets are multiples of this. Smaller numbers cut off less of the picture, but make more and "
        "smaller batches.",
        label="Step between bucket sizes",
        minimum=1,
        step=8,
        unit="pixels",
        when=Is("enable_bucket", True),
        place="Parameters",
    )
    bucket_no_upscale: bool = option(
        False,
        "Never enlarge a small picture to fill a bucket; it gets a bucket of its own size. Sharper results from small "
        "pictures.",
        label="Don't enlarge small pictures",
        when=Is("enable_bucket", True),
        place="Parameters",
    )
    resize_interpolation: str | None = option(
        None,
        "How pictures are scaled. Without a choice: area when shrinking, lanczos when enlarging.",
        label="Scaling method",
        choices=("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"),
        place="Parameters",
    )
    cache_latents: bool = option(
        False,
        "Encode every picture once before training and keep the result in memory. Much faster; cannot go with colour "
        "changes or random cropping.",
        label="Cache encoded pictures",
        when=Is("color_aug", False),
        place="Parameters",
    )
    cache_latents_to_disk: bool = option(
        False,
        "Keep the encoded pictures as .npz files beside the pictures, so that the next run starts at once. Switches "
        "the cache on.",
        label="Cache on disk",
        when=Is("color_aug", False),
        place="Parameters",
    )
    vae_batch_size: int = option(
        1,
        "Pictures encoded at once while caching. Raise it to cache faster where memory allows.",
        label="Pictures encoded at once",
        minimum=1,
        step=1,
        off=0,
        unit="pictures",
        place="Parameters",
    )
    skip_cache_check: bool = option(
        False,
        "Trust cache files on disk without opening each one. Saves time with very many pictures; a damaged file then "
        "stops the run later.",
        label="Don't check cache files",
        place="Parameters",
    )
    cache_info: bool = option(
        False,
        "Remember the sizes of the pictures in a file of the folder, so that the next start need not open each one. "
        "For very many pictures.",
        label="Remember picture sizes",
        place="Parameters",
    )
    flip_aug: bool = option(
        False,
        "Show each picture mirrored half of the time. Good for few pictures of a symmetric subject, wrong for writing "
        "or faces with one-sided marks.",
        label="Mirror at random",
        place="Parameters",
    )
    color_aug: bool = option(
        False,
        "Change hue and brightness a little each time. Needs the picture cache off, and training slows down.",
        label="Vary colours",
        place="Parameters",
    )
    random_crop: bool = option(
        False,
        "Cut at a random place instead of the middle where a picture is larger than its bucket. Needs the picture "
        "cache off.",
        label="Crop at random places",
        place="Parameters",
    )
    face_crop_aug_range: str | None = option(
        None,
        "Cut around faces, enlarged by a random factor between two numbers such as 2.0,4.0. "
        "Needs face positions in the picture's file name, as the face detection tool writes them.",
        label="Crop around faces",
        place="Parameters",
    )
    alpha_mask: bool = option(
        False,
        "Use the transparency of the pictures as a mask: transparent parts are not learned.",
        label="Transparency as mask",
        place="Parameters",
    )
    prior_loss_weight: float = option(
        1.0,
        "How much regularisation pictures count compared with your own. Lower it if the subject is learned too weakly.",
        label="Weight of regularisation pictures",
        minimum=0,
        step=0.05,
        place="Parameters",
        methods=("network", "full", "embedding", "xti"),
    )
    max_data_loader_n_workers: int = option(
        8,
        "Processes that prepare pictures, at most as many as the machine has cores. With cached pictures 0 to 2 is "
        "enough, and starts faster.",
        label="Loading processes",
        minimum=0,
        step=1,
        unit="processes",
        place="Parameters",
    )
    persistent_data_loader_workers: bool = option(
        False,
        "Keep the loading processes alive between epochs. Shorter pauses, somewhat more memory.",
        label="Keep loading processes",
        place="Parameters",
    )
    debug_dataset: bool = option(
        False,
        "Show what the trainer would see (pictures, captions, buckets) and stop without training.",
        label="Only inspect the dataset",
        place="Parameters",
    )


@section("Captions")
class CaptionOptions:
    """Captions: where they come from and how they vary from one showing to the next."""

    caption_extension: str = option(
        ".caption",
        "Ending of the caption files beside the pictures. Most tools write .txt.",
        label="Ending of caption files",
        choices=(".caption", ".txt", ".cap"),
        custom=True,
        place="Folders",
    )
    caption_extention: str | None = option(
        None,
        "Older spelling of caption_extension; takes its place if given. Kept for old scripts.",
        label="Ending of caption files (old spelling)",
    )
    caption_separator: str = option(
        ",",
        "The character between the tags of a caption, for shuffling and dropping.",
        label="Separator of tags",
    )
    shuffle_caption: bool = option(
        False,
        "Put the tags of a caption in a new order each time, so that order carries no meaning. For tag lists, not for "
        "sentences.",
        label="Shuffle tags",
    )
    keep_tokens: int = option(
        0,
        "How many tags at the beginning stay in place when shuffling or dropping. 1 protects a trigger word.",
        label="Tags kept in front",
        minimum=0,
        step=1,
        unit="tags",
    )
    keep_tokens_separator: str = option(
        "",
        "A sign inside captions, such as |||: tags before it (and after a second one) stay in place. Goes before the "
        "number of kept tags.",
        label="Sign after the kept tags",
    )
    secondary_separator: str | None = option(
        None,
        "A second sign, such as ;;;, that binds tags together: they are shuffled and dropped as one. It becomes the "
        "normal separator in the end.",
        label="Sign that binds tags",
    )
    enable_wildcard: bool = option(
        False,
        "Choose one at random from {a|b|c} in captions, and one line of caption files with several lines.",
        label="Alternatives in captions",
    )
    caption_prefix: str | None = option(
        None,
        "Text put before every caption, for instance a trigger word.",
        label="Before every caption",
    )
    caption_suffix: str | None = option(
        None,
        "Text put after every caption, for instance the name of a style.",
        label="After every caption",
    )
    caption_dropout_rate: float = option(
        0.0,
        "Share of showings without any caption, 0 to 1. A little (0.05 to 0.1) lets the model also learn the pictures "
        "as such.",
        label="Showings without caption",
        minimum=0,
        maximum=1,
        step=0.01,
        methods=("network", "full", "controlnet", "lllite"),
    )
    caption_dropout_every_n_epochs: int = option(
        0,
        "Leave out all captions in every n-th epoch; 0 for never.",
        label="An epoch without captions, every",
        minimum=0,
        step=1,
        unit="epochs",
        methods=("network", "full", "controlnet", "lllite"),
    )
    caption_tag_dropout_rate: float = option(
        0.0,
        "Chance of each tag to be left out, 0 to 1. Kept tags stay. Helps against a model that needs the whole list.",
        label="Chance of dropping a tag",
        minimum=0,
        maximum=1,
        step=0.01,
        methods=("network", "full", "controlnet", "lllite"),
    )
    token_warmup_min: int = option(
        1,
        "How many tags are shown at the very beginning when their number grows slowly.",
        label="Tags at the beginning",
        minimum=1,
        step=1,
        unit="tags",
        when=Given("token_warmup_step"),
    )
    token_warmup_step: float = option(
        0,
        "Steps until all tags are shown; below 1 it is a share of all steps, 0 shows all from the start.",
        label="All tags after",
        minimum=0,
        unit="steps",
    )
