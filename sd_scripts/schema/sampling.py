"""Pictures made during training, to see how it goes."""

from .option import option, section

SAMPLERS = (
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
)  # fmt: skip


@section("Samples", place="Samples")
class SamplingOptions:
    """When and how samples are made."""

    sample_every_n_epochs: int | None = option(
        None,
        "Make samples after every n epochs. Goes before the number of steps.",
        label="Samples every",
        step=1,
        off=0,
        unit="epochs",
    )
    sample_every_n_steps: int | None = option(
        None,
        "Make samples after every n steps.",
        label="Samples every (steps)",
        step=1,
        off=0,
        unit="steps",
    )
    sample_at_first: bool = option(
        False,
        "Also make samples before the first step, to compare with the untrained model.",
        label="Samples before training",
    )
    sample_prompts: str | None = option(
        None,
        "File with the prompts: .txt with one a line (--n negative, --w width, --h height, --d seed, --l scale, --s "
        "steps), .toml or .json.",
        label="File of prompts",
        kind="file",
    )
    sample_sampler: str = option(
        "ddim",
        "How samples are denoised. euler_a is quick and good; with a fixed seed ddim and euler change least between "
        "samples.",
        label="Sampler",
        choices=SAMPLERS,
    )
