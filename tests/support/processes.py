"""Processes that tests start, and end: none outlives a test run, even one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sessions_api.embedded import ending_with

# Processes end with the thread that started them, and a test may start one from a passing
# thread: this one stays to the end.
_LAUNCHER = ThreadPoolExecutor(1, "process launcher")


def launched(
    command: Sequence[str | Path],
    *,
    log: Path,
    errors: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """In a session of its own; what it says is added to *log*, its errors to *errors* if that is given."""
    with log.open("ab") as out, (errors or log).open("ab") as err:
        return _LAUNCHER.submit(
            subprocess.Popen,
            list(map(str, command)),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err if errors else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ending_with(os.getpid()),
        ).result()


def ended(
    process: subprocess.Popen[bytes] | None,
    number: signal.Signals = signal.SIGTERM,
    *,
    within_s: float = 10.0,
) -> int:
    """Its exit status after signal *number*, frozen or not; killed if that takes longer."""
    if process is None:
        return 0
    process.send_signal(number)
    if number != signal.SIGKILL:  # a frozen one must not come to itself before it dies
        process.send_signal(signal.SIGCONT)
    try:
        return process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
