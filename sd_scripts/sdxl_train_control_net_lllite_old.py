"""The older name of sdxl_train_control_net_lllite.py, for scripts that use it."""

from sd_scripts.train import main

if __name__ == "__main__":
    raise SystemExit(main("sdxl_train_control_net_lllite"))
