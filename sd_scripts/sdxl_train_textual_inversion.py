"""Train a new word for SDXL: `accelerate launch sd_scripts/sdxl_train_textual_inversion.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("sdxl_train_textual_inversion"))
