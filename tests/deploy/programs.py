"""The programs around the service, as deploy/ has them: HAProxy, nginx, Prometheus, on this machine's ports.

Their files are deploy/'s own. What differs here is what deploy/ says may differ:
HAProxy's addresses come from its environment, nginx's from the two files beside
``nginx.conf``, Prometheus' targets and interval from its one file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import httpx2

from tests.deploy.deployed import DEPLOY
from tests.support.ports import free_port, free_ports
from tests.support.processes import ended, launched

START_TIMEOUT_S: Final = 20.0
SCRAPE: Final = "1s"
"""Between two scrapes, and two looks at the rules, in place of the deployed interval."""
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Debian has servers where only root looks."""


def found(name: str) -> str:
    """The path of a program; empty where it is not installed."""
    return shutil.which(name, path=_PATH) or ""


def missing(*names: str) -> str:
    """Why a test that needs these programs cannot run; empty where it can."""
    absent = [name for name in names if not found(name)]
    return f"no {', '.join(absent)} here: `make test` as root on Debian installs them" if absent else ""


def checked(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The outcome of a program's own check of its files."""
    name, *rest = command
    return subprocess.run(
        [found(str(name)), *rest],
        cwd=cwd,
        env=os.environ | dict(env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


class Program:
    """One process from entering to leaving; *is_ready* is asked until it is."""

    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def is_ready(self) -> bool:
        raise NotImplementedError

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self._process = launched(
            [found(self.name), *self.command()],
            log=self.folder / "log",
            cwd=self.folder,
            env=os.environ | self.environment(),
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                raise AssertionError(f"{self.name} did not start:\n{self.log[-4000:]}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_exc: object) -> None:
        process, self._process = self._process, None
        ended(process, self.stop_signal)


def answers(url: str, status: int = 200) -> bool:
    try:
        return httpx2.get(url, timeout=2, trust_env=False).status_code == status
    except httpx2.TransportError:
        return False


class HAProxy(Program):
    """deploy/haproxy/haproxy.cfg, as it stands, before these *replicas* (``host:port``).

    *edits*, old → new: for the lines that stand in it as comments, and times that are too long to wait for.
    """

    def __init__(
        self, folder: Path, replicas: Sequence[str], *, edits: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, "haproxy")
        self._file = folder / "haproxy.cfg"
        self.change(edits or {})
        self.port, self.operators = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self._replicas = replicas

    def command(self) -> Sequence[str]:
        return ["-W", "-db", "-f", str(self._file)]  # as the image's entrypoint does

    def change(self, edits: Mapping[str, str]) -> None:
        """Write the deployed file with these *edits* and no others; they count from :meth:`reload` on."""
        self._file.write_text(edited((DEPLOY / "haproxy" / "haproxy.cfg").read_text(), edits))

    def reload(self) -> None:
        """As deploy/README.md has it."""
        self.send(signal.SIGUSR2)

    def environment(self) -> dict[str, str]:
        replicas = {f"API_{number}": address for number, address in enumerate(self._replicas, start=1)}
        return replicas | {
            "LISTEN": f"127.0.0.1:{self.port}",
            "LISTEN_OPERATORS": f"127.0.0.1:{self.operators}",
        }

    def is_ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.operators}/healthz") and self.ready_replicas() == len(
            self._replicas
        )

    def ready_replicas(self) -> int:
        """How many replicas it finds ready."""
        url = f"http://127.0.0.1:{self.operators}/metrics"
        text = httpx2.get(url, params={"scope": "backend"}, timeout=5, trust_env=False).text
        [count] = re.findall(r'^haproxy_backend_active_servers\{proxy="api"\} (\d+)', text, re.MULTILINE)
        return int(count)


def edited(text: str, edits: Mapping[str, str]) -> str:
    """*text* with each old by its new; every old has to be there, once."""
    for old, new in edits.items():
        assert text.count(old) == 1, f"{text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


def nginx_files(
    folder: Path,
    replicas: Sequence[str],
    port: int,
    edits: Mapping[str, str] | None = None,
    times: Mapping[str, str] | None = None,
) -> Path:
    """deploy/nginx/nginx.conf as it stands, beside it the other two with these addresses; its path.

    *edits*, old → new: for the lines that stand in ``listen.conf`` as comments. *times*: for those in
    ``nginx.conf`` that are too long to wait for.
    """
    addresses = {"listen 3000;": f"listen 127.0.0.1:{port};"} | dict(edits or {})
    for name, edits_here in (("listen.conf", addresses), ("nginx.conf", dict(times or {}))):
        (folder / name).write_text(edited((DEPLOY / "nginx" / name).read_text(), edits_here))
    here = {f"api-{number}:3000": address for number, address in enumerate(replicas, start=1)}
    servers = (DEPLOY / "nginx" / "replicas.conf").read_text()
    (folder / "replicas.conf").write_text(
        re.sub(r"(?<=^server )\S+", lambda name: here[name[0]], servers, flags=re.MULTILINE)
    )
    return folder / "nginx.conf"


class Nginx(Program):
    """deploy/nginx/nginx.conf, as it stands, before these *replicas* (``host:port``).

    *edits* and *times*: see :func:`nginx_files`.
    """

    stop_signal = signal.SIGTERM  # at once; SIGQUIT would wait for streams

    def __init__(
        self,
        folder: Path,
        replicas: Sequence[str],
        *,
        edits: Mapping[str, str] | None = None,
        times: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, "nginx")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._file = nginx_files(folder, replicas, self.port, edits, times)

    def command(self) -> Sequence[str]:
        # As root it would give its workers to nobody, who may not enter a test's folder.
        user = "user root;" if os.getuid() == 0 else ""
        return ["-p", str(self.folder), "-c", str(self._file), "-g", f"daemon off; {user}"]

    def is_ready(self) -> bool:
        return answers(f"{self.url}/readyz")


def prometheus_files(folder: Path, targets: Mapping[str, str]) -> Path:
    """deploy/prometheus/ with these *targets* (deployed → here) and no patience; the main file's path."""
    for path in (DEPLOY / "prometheus").glob("*.yml"):
        shutil.copy(path, folder)
    lines = {f"- {deployed}\n": f"- {here}\n" for deployed, here in targets.items()}
    main = edited((folder / "prometheus.yml").read_text(), lines)
    assert main.count("_interval: 10s") == 2
    (folder / "prometheus.yml").write_text(main.replace("_interval: 10s", f"_interval: {SCRAPE}"))
    alerts = (folder / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(re.sub(r"\bfor: \w+", f"for: {SCRAPE}", alerts))
    return folder / "prometheus.yml"


class Prometheus(Program):
    """deploy/prometheus/prometheus.yml and its rules, with these *targets* and a short interval."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        super().__init__(folder, "prometheus")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._file = prometheus_files(folder, targets)

    def command(self) -> Sequence[str]:
        return [
            f"--config.file={self._file}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def is_ready(self) -> bool:
        return answers(f"{self.url}/-/ready")

    def ask(self, path: str, **params: str | float) -> dict[str, object]:
        """The ``data`` of a reply of its API."""
        reply = httpx2.get(f"{self.url}/api/v1/{path}", params=params, timeout=20, trust_env=False).json()
        assert reply["status"] == "success", reply
        data: dict[str, object] = reply["data"]
        return data


def until(condition: Callable[[], object], what: str, *, within_s: float = 20.0) -> None:
    """Return when *condition* holds; fail saying *what* did not happen."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"within {within_s} s: {what}"
        time.sleep(0.05)
