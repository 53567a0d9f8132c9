"""Train a ControlNet-LLLite for SDXL: `accelerate launch sd_scripts/sdxl_train_control_net_lllite.py --help`."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("sdxl_train_control_net_lllite"))
