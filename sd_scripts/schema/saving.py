"""What is written, when, and what it says about itself."""

from .option import Given, option, section


@section("Metadata", place="Model")
class MetadataOptions:
    """What the file says about itself, in the fields of the modelspec standard."""

    metadata_title: str | None = option(None, "Title stored in the file; the output name if empty.", label="Title")
    metadata_author: str | None = option(None, "Name of the author stored in the file.", label="Author")
    metadata_description: str | None = option(None, "Description stored in the file.", label="Description", kind="long")
    metadata_license: str | None = option(None, "Licence stored in the file.", label="Licence")
    metadata_tags: str | None = option(None, "Tags stored in the file, separated by commas.", label="Tags")
    metadata_usage_hint: str | None = option(
        None, "Advice stored in the file on how to use it, for instance the best strength.", label="How to use it"
    )
    metadata_thumbnail: str | None = option(
        None,
        "Small picture stored in the file: the path of a picture, or a data: address.",
        label="Thumbnail",
        kind="file",
    )
    metadata_merged_from: str | None = option(
        None, "Names of the models that this one was merged from, separated by commas.", label="Merged from"
    )
    metadata_trigger_phrase: str | None = option(
        None, "The words that call up what was learned, stored in the file.", label="Trigger words"
    )
    metadata_preprocessor: str | None = option(
        None, "The kind of preparation that control pictures need, stored in the file.", label="Preprocessor"
    )
    metadata_is_negative_embedding: str | None = option(
        None, "true if this is an embedding for negative prompts; stored in the file.", label="Negative embedding"
    )


@section("Hugging Face")
class HubOptions:
    """Uploading results to the Hugging Face Hub."""

    huggingface_repo_id: str | None = option(
        None,
        "Repository (user/name) to upload every saved file to. Empty for no upload.",
        label="Upload to repository",
    )
    huggingface_repo_type: str | None = option(
        None,
        "Kind of repository: model, dataset or space.",
        label="Kind of repository",
        choices=("model", "dataset", "space"),
        custom=True,
        when=Given("huggingface_repo_id"),
    )
    huggingface_path_in_repo: str | None = option(
        None,
        "Folder inside the repository.",
        label="Folder in the repository",
        when=Given("huggingface_repo_id"),
    )
    huggingface_token: str | None = option(
        None,
        "Token with the right to write. Better set as the environment variable HF_TOKEN than saved in a file.",
        label="Token",
        kind="secret",
        when=Given("huggingface_repo_id"),
    )
    huggingface_repo_visibility: str | None = option(
        None,
        "public lets everybody see a new repository; otherwise it is private.",
        label="Visibility",
        choices=("private", "public"),
        custom=True,
        when=Given("huggingface_repo_id"),
    )
    save_state_to_huggingface: bool = option(
        False,
        "Upload training states too.",
        label="Upload states",
        when=Given("huggingface_repo_id"),
    )
    resume_from_huggingface: bool = option(
        False,
        "Read the state to go on from from the Hub: the state's path is then repository/path:revision:kind.",
        label="Go on from a state on the Hub",
        when=Given("resume"),
    )
    async_upload: bool = option(
        False,
        "Upload while training goes on, instead of waiting.",
        label="Upload in the background",
        when=Given("huggingface_repo_id"),
    )


@section("Saving", place="Folders")
class SavingOptions(MetadataOptions, HubOptions):
    """Model files and training states; metadata and uploads are inherited."""

    output_dir: str | None = option(
        None,
        "Folder for everything that the run writes. It is made if it does not exist.",
        label="Output folder",
        kind="folder",
        basic=True,
    )
    output_name: str | None = option(
        None,
        "Name of the files without ending; last if empty. Numbers of epochs or steps are added.",
        label="Name of the result",
        basic=True,
    )
    save_model_as: str | None = option(
        "safetensors",
        "File format of the result. safetensors is safe to share and loads fast; ckpt and pt are pickles for old "
        "programs.",
        label="File format",
        choices=("ckpt", "pt", "safetensors"),
    )
    save_precision: str | None = option(
        None,
        "Number format of the saved weights: float for 32 bits, fp16 and bf16 for half the size. Without a choice, as "
        "trained.",
        label="Precision of the file",
        choices=("float", "fp16", "bf16"),
    )
    save_every_n_epochs: int | None = option(
        None,
        "Also save after every n epochs, so that you can choose the best one.",
        label="Save every",
        minimum=1,
        step=1,
        off=0,
        unit="epochs",
        basic=True,
        place="Parameters",
    )
    save_every_n_steps: int | None = option(
        None,
        "Also save after every n steps.",
        label="Save every (steps)",
        minimum=1,
        step=1,
        off=0,
        unit="steps",
        place="Parameters",
    )
    save_n_epoch_ratio: int | None = option(
        None,
        "Save about this many times, spread evenly over the epochs. Takes the place of saving every n epochs.",
        label="Number of saves in all",
        minimum=1,
        step=1,
        off=0,
        place="Parameters",
    )
    save_last_n_epochs: int | None = option(
        None,
        "Keep only the files of the last n epochs that were saved; older ones of this run are deleted.",
        label="Keep the last",
        minimum=1,
        step=1,
        off=0,
        unit="epochs",
        place="Parameters",
    )
    save_last_n_epochs_state: int | None = option(
        None,
        "Keep only the states of the last n epochs that were saved; as many as files if empty.",
        label="Keep the last states",
        minimum=1,
        step=1,
        off=0,
        unit="epochs",
        place="Parameters",
    )
    save_last_n_steps: int | None = option(
        None,
        "Keep only files saved within the last n steps; older ones of this run are deleted.",
        label="Keep files of the last",
        minimum=1,
        step=1,
        off=0,
        unit="steps",
        place="Parameters",
    )
    save_last_n_steps_state: int | None = option(
        None,
        "Keep only states saved within the last n steps; as for files if empty.",
        label="Keep states of the last",
        minimum=1,
        step=1,
        off=0,
        unit="steps",
        place="Parameters",
    )
    save_state: bool = option(
        False,
        "With every save also write the whole state of the training, so that it can go on later exactly where it was. "
        "Large.",
        label="Save the training state",
        place="Parameters",
    )
    save_state_on_train_end: bool = option(
        False,
        "Write the state once at the end, to train longer later.",
        label="Save the state at the end",
        place="Parameters",
    )
    resume: str | None = option(
        None,
        "Folder of a saved training state to go on from.",
        label="Go on from this state",
        kind="folder",
        place="Parameters",
    )
    no_metadata: bool = option(
        False,
        "Leave the settings of the training out of the file; only what programs need to load it stays.",
        label="Don't write settings into the file",
        methods=("network",),
        place="Model",
    )
    training_comment: str | None = option(
        None,
        "A note of your own stored in the file, for instance the trigger word.",
        label="Comment",
        methods=("network",),
        place="Model",
    )
