"""What a LoRA was trained on: `python sd_scripts/networks/lora_interrogator.py --sd_model a.safetensors --model b.pt`.

It may be told by the words that the LoRA changes most in the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from sd_scripts.schema.tools_inspect import InterrogateLoraOptions
from sd_scripts.tools.common import run

PROG = "lora_interrogator.py"
OPTIONS = InterrogateLoraOptions


def work(options: InterrogateLoraOptions) -> None:
    """Print the words. Raises UserError."""
    from sd_scripts.tools.lora.interrogate import interrogate

    interrogate(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run(OPTIONS, work, argv, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
