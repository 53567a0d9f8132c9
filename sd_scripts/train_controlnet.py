"""Train a ControlNet: `accelerate launch sd_scripts/train_controlnet.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("train_controlnet"))
