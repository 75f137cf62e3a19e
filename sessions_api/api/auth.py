"""Who calls: the one place where a request becomes a Caller.

While no access key is configured there is one caller, ``local``, and the
service must be reachable by nobody else: it listens on loopback only, answers
only under loopback names (so that a stranger's name that resolves to 127.0.0.1
opens nothing), and refuses a browser's request from any page but its own.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from sessions_api.domain.ids import AppName
from sessions_api.errors import Forbidden


@dataclass(frozen=True, slots=True)
class Caller:
    """The application that a request speaks for, and what it may do."""

    app: AppName
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes


class Access:
    """The rule of a service without keys."""

    def __init__(self, app: AppName) -> None:
        self._local = Caller(app, frozenset({"admin", "app"}))

    def caller(self, host: bytes | None, origin: bytes | None) -> Caller:
        """The caller of a request or handshake with these headers.

        Raises:
            Forbidden: the name is not a loopback one, or the page is another's.
        """
        if host is None or not _is_loopback_name(host):
            raise Forbidden("Without access keys this service answers only under a loopback name")
        if origin is not None and origin.partition(b"://")[2].lower() != host.lower():
            raise Forbidden("Without access keys this service answers only pages of its own origin")
        return self._local


@lru_cache(maxsize=256)
def _is_loopback_name(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
