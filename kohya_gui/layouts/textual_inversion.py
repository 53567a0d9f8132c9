"""The Textual Inversion tab: which option stands where."""

from kohya_gui.layout import Group, Page
from kohya_gui.layouts import shared

PAGES = (
    Page(
        "main",
        "Model and pictures",
        groups=(
            shared.start(after_name=("token_string", "init_word", "num_vectors_per_token")),
            Group("The new word", ("template", "weights", "xti")),
            shared.CAPTIONS,
            shared.ABOUT_MODEL,
        ),
    ),
    shared.folders(),
    shared.PREPARATION,
    shared.parameters((shared.rates(),)),
    shared.SAMPLES,
    shared.ACCELERATE,
)

REST_PAGES = shared.REST_PAGES
