"""Train a whole model from picture folders (DreamBooth): `accelerate launch sd_scripts/train_db.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("train_db"))
