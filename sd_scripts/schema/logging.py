"""What the trainer says on the console, and the logs for TensorBoard and Weights & Biases."""

from .option import In, option, section


@section("Logging")
class LoggingOptions:
    """Console output and experiment trackers."""

    logging_dir: str | None = option(
        None,
        "Folder for TensorBoard logs; each run gets a sub-folder.",
        label="Log folder",
        kind="folder",
        place="Folders",
    )
    log_with: str | None = option(
        None,
        "Program that shows the curves: tensorboard (on this machine), wandb (a web service), or both. "
        "TensorBoard if only a log folder is given.",
        label="Log with",
        choices=("tensorboard", "wandb", "all"),
        aliases=("use_wandb",),
    )
    log_prefix: str | None = option(
        None,
        "Text before the date in the name of the log's sub-folder.",
        label="Start of the log's name",
    )
    log_tracker_name: str | None = option(
        None,
        "Name of the project in the tracker; network_train if empty.",
        label="Project name",
    )
    log_tracker_config: str | None = option(
        None,
        "TOML file with further settings of the tracker.",
        label="Tracker settings file",
        kind="file",
    )
    wandb_run_name: str | None = option(
        None,
        "Name of this run in Weights & Biases.",
        label="Run name",
        when=In("log_with", "wandb", "all"),
    )
    wandb_api_key: str | None = option(
        None,
        "Key of your Weights & Biases account. Better set as the environment variable WANDB_API_KEY than saved in a "
        "file.",
        label="Weights & Biases key",
        kind="secret",
        when=In("log_with", "wandb", "all"),
    )
    log_config: bool = option(
        False,
        "Store the settings of the run in the tracker as well.",
        label="Log the settings",
    )
    console_log_level: str | None = option(
        None,
        "How much the console says: DEBUG everything, INFO the usual, WARNING and above only trouble.",
        label="Console messages",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    console_log_file: str | None = option(
        None,
        "Write the messages into this file instead of the console.",
        label="Messages into a file",
        kind="file",
    )
    console_log_simple: bool = option(
        False,
        "Plain messages without colours and columns. For terminals that show them badly.",
        label="Plain messages",
    )
