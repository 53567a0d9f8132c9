"""Train a new word: `accelerate launch sd_scripts/train_textual_inversion.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("train_textual_inversion"))
