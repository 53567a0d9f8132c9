"""Train the whole SDXL model: `accelerate launch sd_scripts/sdxl_train.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("sdxl_train"))
