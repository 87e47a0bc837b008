"""``python -m quire.server``: the same as ``quire serve``."""

from __future__ import annotations

import sys

from quire.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
