"""Imported once, right after gradio: its hundred thousand objects live as long as the process, so the garbage
collector need not look through them again and again while the rest of the page is imported and built."""

import gc

gc.freeze()
