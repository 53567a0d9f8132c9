"""Train a new word block by block (XTI): `accelerate launch sd_scripts/train_textual_inversion_XTI.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("train_textual_inversion_XTI"))
