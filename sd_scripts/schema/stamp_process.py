"""What tells whether a file changed; run as a program, this looks at the files of a folder and prints their stamps.

    python stamp_process.py FOLDER < names, each but the last with a zero at its end > stamps

It imports nothing of this package, so that the program starts in a hundredth of a second.
"""

import os
import struct
import sys
from collections.abc import Callable

STAMP = struct.Struct("=3q")
"""Length in bytes, time of change and time of the inode in ns."""
GONE = STAMP.pack(-1, 0, 0)


def looker(handle: int) -> Callable[[str | bytes], bytes]:
    """A function from the name of a file in an open folder to its stamp, following links."""
    stat, pack = os.stat, STAMP.pack

    def look(name: str | bytes) -> bytes:
        try:
            status = stat(name, dir_fd=handle)
        except OSError:
            return GONE
        return pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    return look


if __name__ == "__main__":
    look_at = looker(os.open(sys.argv[1], os.O_RDONLY))
    sys.stdout.buffer.write(b"".join(map(look_at, sys.stdin.buffer.read().split(b"\0"))))
