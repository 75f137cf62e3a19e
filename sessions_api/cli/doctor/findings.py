"""What doctor says of one thing: how it is, what that costs, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "fail"]
COLOURS: dict[Verdict, str] = {"ok": "32", "warn": "33", "fail": "31;1"}
STATUS: dict[Verdict, int] = {"ok": 0, "warn": 1, "fail": 2}
"""The exit status, as monitoring programs have it."""


class Finding(NamedTuple):
    """One thing that was looked at.

    *check* names it and stays the same in every release; *costs* and *fix* are there
    where something could be better; *server* where there are several.
    """

    verdict: Verdict
    check: str
    found: str
    costs: str = ""
    fix: str = ""
    server: str = ""


def worst(findings: Iterable[Finding]) -> Verdict:
    return max((finding.verdict for finding in findings), key=STATUS.__getitem__, default="ok")


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """One finding in place of the same of several servers, which it names."""
    servers: dict[Finding, list[str]] = {}
    for finding in findings:
        servers.setdefault(finding._replace(server=""), []).append(finding.server)
    return [finding._replace(server=", ".join(filter(None, names))) for finding, names in servers.items()]


def bytes_in_words(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
