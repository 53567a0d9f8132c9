"""Textual Inversion: new words whose vectors are learned while the model stays as it is."""

from .option import Is, option, section


@section("Embedding")
class EmbeddingOptions:
    """The new word, its start and its captions."""

    token_string: str | None = option(
        None,
        "The new word to learn. Choose one that the text encoder does not know as a single word, for instance mycat4, "
        "and write it in the captions.",
        label="New word",
        basic=True,
    )
    init_word: str | None = option(
        None,
        "Ordinary words whose vectors the new ones start from, for instance cat. Empty starts near the mean of all "
        "words.",
        label="Words to start from",
        basic=True,
    )
    num_vectors_per_token: int = option(
        1,
        "How many vectors the new word gets. More hold more detail, but each takes a place in the caption and learns "
        "the pictures by heart sooner.",
        label="Vectors of the new word",
        minimum=1,
        step=1,
        basic=True,
    )
    weights: str | None = option(
        None,
        "An embedding file to go on from, with as many vectors as asked for.",
        label="Go on from this embedding",
        kind="file",
    )
    use_object_template: bool = option(
        False,
        "Leave the captions aside and describe every picture by a sentence such as: a photo of the new word. For "
        "things and persons.",
        label="Sentences for an object",
        when=Is("use_style_template", False),
    )
    use_style_template: bool = option(
        False,
        "Leave the captions aside and describe every picture by a sentence such as: a painting in the style of the "
        "new word.",
        label="Sentences for a style",
        when=Is("use_object_template", False),
    )
