"""Train a LoRA or another network for SDXL: `accelerate launch sd_scripts/sdxl_train_network.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("sdxl_train_network"))
