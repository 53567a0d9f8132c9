"""Captions by BLIP-2: `python sd_scripts/tools/blip2-for-sd/main.py <folder of folders>`."""

from sd_scripts.tools.blip2 import main

if __name__ == "__main__":
    raise SystemExit(main())
