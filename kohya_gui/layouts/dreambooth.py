"""The Dreambooth tab: which option stands where."""

from kohya_gui.layout import Page
from kohya_gui.layouts import shared

PAGES = (
    Page(
        "main",
        "Model and pictures",
        groups=(shared.start(), shared.CAPTIONS, shared.ABOUT_MODEL),
    ),
    shared.folders(),
    shared.PREPARATION,
    shared.parameters(
        (
            shared.rates(
                "learning_rate_te",
                "stop_text_encoder_percent",
                "stop_text_encoder_training",
                "train_text_encoder",
                "learning_rate_te1",
                "learning_rate_te2",
                "block_lr",
            ),
        ),
    ),
    shared.SAMPLES,
    shared.ACCELERATE,
)

REST_PAGES = shared.REST_PAGES
