"""The shell blocks of docs/backup.md, run as an operator runs them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Final

PAGE: Final = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()
BLOCKS: Final = dict(re.findall(r"^ *```sh (\w+)\n(.+?)^ *```$", PAGE, re.DOTALL | re.MULTILINE))
TIMEOUT_S: Final = 30.0


def follow(block: str, names: Mapping[str, str]) -> None:
    """Run one, with the *names* in it; it has to succeed."""
    done = subprocess.run(
        ["sh", "-eu", "-c", dedent(BLOCKS[block])],
        env=os.environ | dict(names),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
