"""A service whose access keys are in a file, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sessions_api.access.keyring import mint
from tests.support.access import Caller
from tests.support.service import Service

OPS_LINE, OPS = mint("ops", ["admin"])
"""The operator's key, which is in the file from the start."""


def secret_of(credential: str) -> str:
    """What of a key or token nobody else may see: what stands behind its last dot."""
    return credential.rpartition(".")[2]


class Filed:
    """A service, and the file that it has its keys from."""

    def __init__(self, service: Service, path: Path) -> None:
        self.service = service
        self.data = path.parent / "data"
        self._path = path
        self._callers: list[Caller] = []

    def write(self, *lines: str) -> None:
        """Put a file with these lines in the place of the one there is."""
        beside = self._path.with_suffix(".new")
        beside.write_text("".join(f"{line}\n" for line in lines))
        beside.chmod(0o600)
        beside.replace(self._path)

    def chmod(self, mode: int) -> None:
        self._path.chmod(mode)

    def caller(self, key: str = "") -> Caller:
        self._callers.append(Caller(self.service.url, key))
        return self._callers[-1]

    def leave(self) -> None:
        for caller in self._callers:
            caller.close()
        self._callers.clear()

    def status(self, key: str) -> int:
        """What whoever shows *key* gets for a list."""
        return self.caller(key).call("GET", "").status_code

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.service.records() if record["event"] == event]


@contextmanager
def filed_service(folder: Path) -> Iterator[Filed]:
    """At the loudest level of its log."""
    path = folder / "keys"
    path.write_text(f"{OPS_LINE}\n")
    path.chmod(0o600)
    with Service(folder, env={"SESSIONS_KEYS_FILE": str(path), "LOG_LEVEL": "debug"}) as service:
        yield Filed(service, path)
        service.assert_no_bug_logged()
