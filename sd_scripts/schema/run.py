"""How this run itself is started and controlled."""

from .option import option, section


@section("Run")
class RunOptions:
    """Configuration files and the folder of the job."""

    config_file: str | None = option(
        None,
        "TOML file with options; its tables are joined, their names don't matter. Options on the command line go "
        "before it.",
        label="Configuration file",
        kind="file",
    )
    output_config: bool = option(
        False,
        "Write the options that differ from their defaults into the configuration file and stop. An existing file is "
        "left alone.",
        label="Write the configuration file",
    )
    job_dir: str | None = option(
        None,
        "Folder for the run's events and for requests to it (stop, save, sample). A folder beside the result if empty.",
        label="Job folder",
        kind="folder",
    )
    plan_only: bool = option(
        False,
        "Read the pictures, say what would be done (steps, epochs, buckets, rates) and stop without training.",
        label="Only show the plan",
    )
    allow_plugins: bool = option(
        False,
        "Allow network, optimizer and schedule classes from packages that are not known here. They run as programs "
        "with all your rights.",
        label="Allow foreign plugins",
    )
