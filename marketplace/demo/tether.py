"""Starts a program that ends with its parent, also where the parent is killed and can tell nobody.

Run by its path as ``tether.py PARENT COMMAND…``: it imports nothing of ours, and becomes the command.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")  # it died before the line above
    os.execv(command[0], command)  # noqa: S606 - the command is our parent's


if __name__ == "__main__":
    main()
