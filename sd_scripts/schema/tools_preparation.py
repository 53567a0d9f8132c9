"""Options of what the page does with folders of pictures by itself; the rules are those of tools.py."""

from .option import option, section


@section("Folder preparation", target="gui")
class FolderPreparationOptions:
    """Copy pictures into the folders that training takes: img/, reg/, log/ and model/ below one place."""

    util_instance_prompt_input: str = option(
        "",
        "A rare word that will stand for what is learned, such as ohwx. It becomes part of the folder's name.",
        label="Instance prompt",
        basic=True,
    )
    util_class_prompt_input: str = option(
        "",
        "What kind of thing it is, such as man or cat. It becomes part of the folder's name.",
        label="Class prompt",
        basic=True,
    )
    util_training_images_dir_input: str = option(
        "",
        "Folder with the pictures to learn from. They are copied with their captions; this folder stays as it is.",
        label="Training images",
        kind="folder",
        basic=True,
    )
    util_training_images_repeat_input: int = option(
        40, "How often every picture is shown in an epoch.", label="Repeats", minimum=1, step=1, basic=True
    )
    util_regularization_images_dir_input: str = option(
        "",
        "Folder with pictures of the class in general, so that it is not forgotten. May be left empty.",
        label="Regularisation images",
        kind="folder",
        basic=True,
    )
    util_regularization_images_repeat_input: int = option(
        1,
        "How often every regularisation picture is shown in an epoch.",
        label="Repeats of the regularisation images",
        minimum=1,
        step=1,
        basic=True,
    )
    util_training_dir_output: str = option(
        "",
        "The folder below which img, reg, log and model are made. It is made if missing.",
        label="Destination training directory",
        kind="folder",
        basic=True,
    )


@section("Dataset balancing", target="gui")
class BalancingOptions:
    """Give every picture folder the repeats that make all of them count the same."""

    folder: str = option("", "The folder whose folders are renamed.", label="Dataset folder", kind="folder", basic=True)
    concept_repeats: int = option(
        1000,
        "Every folder gets as many repeats as bring it closest to this many pictures shown in an epoch. {2} in front "
        "of a folder's name doubles its repeats.",
        label="Training steps per concept per epoch",
        minimum=1,
        step=1,
        basic=True,
    )
    insecure: bool = option(
        False,
        "Rename folders that have no repeats in front of their name, too. Check the folder twice: every folder in it "
        "gets a new name.",
        label="Also rename folders without repeats",
        basic=True,
    )


@section("Manual captioning", target="gui")
class ManualCaptionOptions:
    """Write captions by hand, five pictures at a time."""

    images_dir: str = option(
        "", "Folder with the pictures.", label="Image folder to caption", kind="folder", basic=True
    )
    caption_ext: str = option(".txt", "Ending of the caption files.", label="Caption file extension", basic=True)
    auto_save: bool = option(
        True, "Write a caption as soon as its field is left or a tag is ticked.", label="Autosave", basic=True
    )
    quick_tags_text: str = option(
        "",
        "Tags to tick under every picture, separated by commas, in the order in which they shall stand.",
        label="Quick tags",
        kind="long",
        basic=True,
    )
    ignore_load_tags_word_count: int = option(
        3,
        "Tags of more words than this are left out when tags are imported: they are sentences, not tags.",
        label="Ignore imported tags above word count",
        minimum=1,
        maximum=100,
        step=1,
        basic=True,
    )
