"""The ControlNet tab: which option stands where."""

from kohya_gui.layout import Group, Page
from kohya_gui.layouts import shared

PAGES = (
    Page(
        "main",
        "Model and pictures",
        groups=(
            shared.start(after_pictures=("conditioning_data_dir",)),
            Group("The ControlNet", ("controlnet_model_name_or_path",)),
            shared.CAPTIONS,
            shared.ABOUT_MODEL,
        ),
    ),
    shared.folders(masks=False),
    shared.parameters((shared.rates(),)),
    shared.SAMPLES,
    shared.ACCELERATE,
)

REST_PAGES = shared.REST_PAGES
