"""Start the page, or one of its commands without a browser: `kohya_gui.py [train|command|check|jobs ...]`."""

import sys

from kohya_gui.start import main

if __name__ == "__main__":
    sys.exit(main())
