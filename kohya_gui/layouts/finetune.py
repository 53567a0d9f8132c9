"""The Finetune tab: which option stands where."""

from kohya_gui.layout import Group, Page
from kohya_gui.layouts import shared

PAGES = (
    Page(
        "main",
        "Model and pictures",
        groups=(
            shared.start(after_pictures=("train_dir",)),
            Group(
                "Before the training",
                (
                    "create_caption",
                    "create_buckets",
                    "use_latent_files",
                    "caption_metadata_filename",
                    "latent_metadata_filename",
                    "full_path",
                    "batch_size",
                ),
            ),
            shared.CAPTIONS,
            shared.ABOUT_MODEL,
        ),
    ),
    shared.folders(),
    shared.PREPARATION,
    shared.parameters(
        (shared.rates("train_text_encoder", "learning_rate_te", "learning_rate_te1", "learning_rate_te2", "block_lr"),),
    ),
    shared.SAMPLES,
    shared.ACCELERATE,
)

REST_PAGES = shared.REST_PAGES
