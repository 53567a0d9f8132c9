"""Train a LoRA or another network: `accelerate launch sd_scripts/train_network.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("train_network"))
