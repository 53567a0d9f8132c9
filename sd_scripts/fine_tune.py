"""Train a whole model from a metadata file (fine-tuning): `accelerate launch sd_scripts/fine_tune.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("fine_tune"))
