"""Setting pictures aside to see whether learning turns into learning by heart."""

from .option import Given, option, section


@section("Validation")
class ValidationOptions:
    """Which pictures are set aside and how often the loss on them is measured."""

    validation_split: float = option(
        0.0,
        "Share of the pictures, 0 to 1, that is not trained but only measured. 0.1 with some hundred pictures; 0 for "
        "none.",
        label="Share set aside",
        minimum=0,
        maximum=1,
        step=0.01,
    )
    validation_seed: int | None = option(
        None,
        "Seed that chooses the pictures set aside; the training seed if empty. Keep it the same to compare runs.",
        label="Seed of the choice",
        minimum=0,
        step=1,
        when=Given("validation_split"),
    )
    validate_every_n_steps: int | None = option(
        None,
        "Measure after every n steps.",
        label="Measure every (steps)",
        minimum=1,
        step=1,
        off=0,
        unit="steps",
        when=Given("validation_split"),
    )
    validate_every_n_epochs: int | None = option(
        None,
        "Measure after every n epochs; after each if nothing is given.",
        label="Measure every",
        minimum=1,
        step=1,
        off=0,
        unit="epochs",
        when=Given("validation_split"),
    )
    max_validation_steps: int | None = option(
        None,
        "Measure on at most this many batches, to save time. All if empty.",
        label="At most",
        minimum=1,
        step=1,
        off=0,
        unit="batches",
        when=Given("validation_split"),
    )
