"""A service of docker-compose.yml in Linux namespaces: what it promises of a container, kept without Docker.

The root is this machine's, read-only beneath an overlay; tmpfs, volumes,
secrets, user, groups, capabilities and the privileges are the compose file's.
The network is this machine's, and limits of memory and processes are not kept.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from tests.deploy.deployed import CHECKOUT

STOP_TIMEOUT_S: Final = 30.0
SECRETS_GROUP: Final = 10001
"""As deploy/README.md has the secrets' files."""
USERS: Final = {"valkey": "999:1000"}
"""Of the images that we do not build."""

_LAUNCHER = ThreadPoolExecutor(1, "container launcher")
_ROOT = "/mnt/root"
_OVERLAY = f"""
set -eu
umask 022
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work {_ROOT}
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work {_ROOT}
mount --rbind /proc {_ROOT}/proc
mount --rbind /dev {_ROOT}/dev
"""


@cache
def why_not() -> str:
    """Why there can be no container here; empty where there can."""
    missing = [name for name in ("unshare", "setpriv", "chroot") if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]} here"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OVERLAY]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no overlay in a mount namespace: {tried.stderr.strip()}" if tried.returncode else ""


def image_of_the_service() -> tuple[dict[Path, str], dict[str, str]]:
    """What stands in for the image that deploy/Dockerfile makes: this checkout and its packages.

    Where each lies in the container, and the environment that finds it.
    """
    binds = {
        Path(sys.base_prefix): "/opt/python",
        Path(sysconfig.get_path("purelib")): "/opt/packages",
        CHECKOUT / "sessions_api": "/opt/checkout/sessions_api",
    }
    python = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return binds, {
        "PYTHONPATH": "/opt/checkout:/opt/packages",
        "LD_LIBRARY_PATH": "/opt/python/lib",  # where Python is a shared library
        "PYTHON": python,
    }


class Container:
    """One service, from entering to leaving; its output is :attr:`log`.

    *told* are arguments after the compose file's own, *programs* name → file of
    commands on PATH, *binds* file or folder → where it lies in the container.
    """

    def __init__(
        self,
        service: Mapping[str, Any],
        folder: Path,
        *,
        secrets: Mapping[str, str],
        environment: Mapping[str, str],
        told: Sequence[str] = (),
        programs: Mapping[str, Path] | None = None,
        binds: Mapping[Path, str] | None = None,
    ) -> None:
        self._service = service
        self._folder = folder
        self._told = told
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._binds = dict(binds or {})
        user, _, group = USERS.get(service["user"], service["user"]).partition(":")
        self._user, self._group = int(user), int(group)
        folder.mkdir()
        for name, content in secrets.items():
            path = folder / name
            path.write_text(content)
            os.chown(path, 0, SECRETS_GROUP)
            path.chmod(0o440)
            self._binds[path] = f"/run/secrets/{name}"
        for name, path in (programs or {}).items():
            self._binds[path] = f"/usr/local/bin/{name}"

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        with (self._folder / "log").open("ab") as log:
            self._process = _LAUNCHER.submit(
                subprocess.Popen,
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", self._script()],
                env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ).result()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, as ``docker compose stop``; the exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the container did not stop:\n{self.log[-4000:]}") from None

    def _script(self) -> str:
        service = self._service
        lines = [_OVERLAY, f"mount -t tmpfs tmpfs {_ROOT}/run"]
        for path, target in self._mounted().items():
            make = f"mkdir -p {_ROOT}{target}" if path.is_dir() else f"touch {_ROOT}{target}"
            lines += [f"mkdir -p $(dirname {_ROOT}{target})", make]
            lines += [f"mount --bind {shlex.quote(str(path))} {_ROOT}{target}"]
        for volume in service.get("volumes", ()):
            if volume.endswith(":ro"):
                lines.append(f"mount -o remount,bind,ro {_ROOT}{volume.split(':')[1]}")
        for each in service["tmpfs"]:
            target, _, options = each.partition(":")
            lines.append(f"mount -t tmpfs -o {options} tmpfs {_ROOT}{target}")
        if service["read_only"]:
            lines += [f"mount -o remount,ro {_ROOT}/run", f"mount -o remount,ro {_ROOT}"]
        limits = ["--no-new-privs"] if "no-new-privileges:true" in service["security_opt"] else []
        if service["cap_drop"] == ["ALL"]:
            limits += ["--bounding-set=-all", "--inh-caps=-all"]
        groups = ",".join(service.get("group_add", ()))
        limits.append(f"--groups={groups}" if groups else "--clear-groups")
        command = [*service["entrypoint"], *service["command"], *self._told]
        inside = shlex.join(word.replace("$$", "$") for word in command)
        folder = shlex.quote(f"cd {service.get('working_dir', '/tmp')} && exec {inside}")
        who = f"--reuid={self._user} --regid={self._group} {shlex.join(limits)}"
        lines.append(f"exec chroot {_ROOT} setpriv {who} --pdeathsig=TERM sh -c {folder}")
        return "\n".join(lines)

    def _mounted(self) -> dict[Path, str]:
        """Also the volumes; one with a name is a folder of its user, as its image has it."""
        found = dict(self._binds)
        for volume in self._service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            if re.match(r"[./]", source):
                found[CHECKOUT / source] = target
            else:
                named = self._folder / source
                named.mkdir(exist_ok=True)
                os.chown(named, self._user, self._group)
                found[named] = target
        return found
