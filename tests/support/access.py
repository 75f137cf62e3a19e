"""Who may call what, as docs/access.md has it, and everybody who stands in its columns."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from websockets.sync.client import ClientConnection

from sessions_api.access.keyring import mint
from tests.support.client import Api

DOC = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
RIGHTS = ("read", "send", "renew", "cancel", "end")
COLUMNS = ("nobody", "app", "agent", "admin", *RIGHTS)
SESSION = "/api/messaging/sessions/{sessionId}"
SHOP, RIVAL = "shop", "rival"
WORKER_AGENT = "a9e20000-0000-4000-8000-000000000001"
OTHER_AGENT = "a9e20000-0000-4000-8000-000000000002"
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The default one reads all certificates there are, for each client anew: 40 ms."""


class Row(NamedTuple):
    """One line of the tables; *detail* tells two lines of one route apart, *cells* is by column."""

    method: str
    path: str
    detail: str
    cells: dict[str, str]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.method, self.path.replace(SESSION, "…"), self.detail)))

    @property
    def opened_to(self) -> set[str]:
        return {column for column, cell in self.cells.items() if cell != "–"}


def rows() -> list[Row]:
    """Every line of every table with the columns of callers."""
    found = []
    is_table = False
    for line in DOC.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[1:] == list(COLUMNS):
            is_table = True
        elif not line.startswith("|"):
            is_table = False
        elif is_table and not cells[1].startswith("---"):
            (request, *details) = re.findall(r"`([^`]+)`", cells[0])
            method, path = request.split()
            by_column = dict(zip(COLUMNS, cells[1:], strict=True))
            found.append(Row(method, path.replace("…", SESSION), " ".join(details), by_column))
    return found


class Caller(Api):
    """A client that shows *credential* with whatever it sends; nothing if it has none."""

    def __init__(self, url: str, credential: str = "") -> None:
        self.url = url
        self.credential = credential
        self.shown = {"X-API-KEY": credential} if credential else {}
        # One id for all: replies that have to be the same are then also of the same length.
        self.http = httpx2.Client(
            base_url=url, timeout=20, headers=self.shown | {"X-Request-Id": "one-for-all"}, verify=_NO_TLS
        )

    def websocket(self, session_id: str, query: str = "", **options: Any) -> ClientConnection:
        return super().websocket(session_id, query, additional_headers=self.shown, **options)

    def token(self, session_id: str, *rights: str, **more: Any) -> str:
        """A token of the session, which has to be this caller's."""
        scopes = {"scopes": list(rights)} if rights else {}
        reply = self.call("POST", f"/{session_id}/tokens", json=scopes | more)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["token"])


class Keys:
    """Access keys by name; *lines* is what the service is given."""

    def __init__(self, **scopes: tuple[str, Iterable[str]]) -> None:
        """*scopes*: of each key its application and its scopes."""
        self.secrets: dict[str, str] = {}
        self.lines: dict[str, str] = {}
        for name, (app, granted) in scopes.items():
            self.lines[name], self.secrets[name] = mint(app, granted)

    def __getitem__(self, name: str) -> str:
        return self.secrets[name]

    @property
    def env(self) -> dict[str, str]:
        return {"SESSIONS_KEYS": ";".join(self.lines.values())}

    def caller(self, url: str, name: str) -> Caller:
        return Caller(url, self.secrets[name])


def cast_keys() -> Keys:
    """Two applications, an operator, the workers of two agents, and one key that is of two kinds."""
    return Keys(
        shop=(SHOP, ["app"]),
        rival=(RIVAL, ["app"]),
        admin=("ops", ["admin"]),
        worker=("workers", [f"agent:{WORKER_AGENT}"]),
        stranger=("workers", [f"agent:{OTHER_AGENT}"]),
        both=(RIVAL, ["app", f"agent:{WORKER_AGENT}"]),
    )
