"""TensorBoard as a process that ends with the page: it lives as long as its standard input stays open.

Run by `tensorboard.TensorBoard`; what to show comes as one line of JSON on standard input, not as arguments, since
these can be read by every user of the machine.
"""

import json
import os
import sys
import threading


def main() -> None:
    """Serve until standard input ends."""
    asked = json.loads(sys.stdin.readline())
    words = ["--logdir", str(asked["logdir"]), "--host", "127.0.0.1", "--port", str(int(asked["port"]))]
    words += ["--path_prefix", str(asked["prefix"]), "--load_fast", "false"]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from tensorboard import default, program

    # only its own plugins: others that happen to be installed would run in here too
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(argv=["tensorboard", *words])
    print(board.launch(), flush=True)
    threading.Event().wait()


def _end_with_parent() -> None:
    while sys.stdin.read(1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
