"""``python -m sessions_api …``: the same commands as ``sessions-api …``."""

from __future__ import annotations

import sys

from sessions_api.cli import main

if __name__ == "__main__":  # spawned workers import this module again
    sys.exit(main())
