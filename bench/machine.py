"""The machine a figure was taken on, which core does what, and what a process takes of it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

QUIET_LOAD = 0.4
PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "redis", "hiredis", "msgspec")


class Cores(NamedTuple):
    """*service* runs what is measured, *redis* Redis, *load* the load generator and this program.

    On two cores, Redis and the load share one.
    """

    service: int
    redis: int
    load: int

    @property
    def are_apart(self) -> bool:
        return self.service != self.load

    def __str__(self) -> str:
        if not self.are_apart:
            return f"ONE core ({self.service}) for the service, Redis and the load: requests/s mean little"
        return f"service on core {self.service}, Redis on {self.redis}, load generator on {self.load}"


def _cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[min(1, len(allowed) - 1)], allowed[-1])


ALL_CORES = os.sched_getaffinity(0)
CORES = _cores()


def describe() -> dict[str, object]:
    """What someone needs to judge the figures."""
    return {
        "cpu": _cpu_model(),
        "cores": len(ALL_CORES),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "code": code(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "pinning": str(CORES),
    }


def code() -> str:
    """The commit that is measured, with a ``+`` where the service's files differ from it."""
    service = Path(__file__).parents[1] / "sessions_api"
    commit = _git("describe", "--always", "--exclude=*", "--abbrev=7", at=service)
    return commit and commit + "+" * bool(_git("status", "--porcelain", ".", at=service))


def _git(*words: str, at: Path) -> str:
    """What git says; nothing outside a repository."""
    asked = subprocess.run(["git", *words], cwd=at, capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def others_busy() -> str:
    """A warning, if others keep this machine busy before anything was started here; else empty."""
    load = os.getloadavg()[0]
    if load <= QUIET_LOAD * len(ALL_CORES):
        return ""
    return f"OTHERS USE THIS MACHINE (load average {load:.1f}): requests/s and latencies mean little"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def resident_bytes(pid: int) -> int:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far, in seconds.

    From the scheduler's nanoseconds where the kernel keeps them; a tick of
    /proc/PID/stat is 10 ms.
    """
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (FileNotFoundError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
