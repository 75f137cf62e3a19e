"""Installs each peer from its registry, at the versions of the lock beside its program."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from bench.figures import progress

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".peers"
"""Ignored by git; may be removed at any time."""
_MARK = ".installed"


class NotInstallableError(Exception):
    """A peer cannot be installed here; the message has the installer's last words."""


def install(peer: str) -> Path:
    """The folder with *peer*, installed now unless its lock is what was installed before.

    Raises:
        NotInstallableError: an installer is missing or failed.
    """
    source = HERE / peer
    lock = next(
        path for path in (source / "requirements.lock", source / "package-lock.json") if path.exists()
    )
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    folder = INSTALLED / peer
    mark = folder / _MARK
    if mark.exists() and mark.read_text() == wanted:
        return folder
    progress(f"installing {peer} (once)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if lock.name == "requirements.lock":
        _with_pip(folder, lock)
    else:
        _with_npm(folder, lock)
    mark.write_text(wanted)
    return folder


def _with_pip(folder: Path, lock: Path) -> None:
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    _run(
        str(folder / "venv/bin/python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--require-hashes",
        "--no-deps",
        "-r",
        str(lock),
    )


def _with_npm(folder: Path, lock: Path) -> None:
    """No package's own script runs: what is compared needs none."""
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstallableError("there is no npm; it comes with Node.js 18 or later")
    shutil.copy(lock, folder)
    shutil.copy(lock.with_name("package.json"), folder)
    _run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise NotInstallableError(f"{' '.join(command[:4])} …: {(done.stdout + done.stderr)[-1500:]}")


def bun(folder: Path) -> Path:
    """The Bun that fits this machine; its package ships one for each, and a script that would choose."""
    kind = {"x86_64": "x64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    found = folder / f"node_modules/@oven/bun-{platform.system().lower()}-{kind}/bin/bun"
    if not found.exists():
        raise NotInstallableError(f"Bun has no build for {platform.system()} on {platform.machine()}")
    return found
