"""Ports of loopback for the servers that tests start.

They lie below those that the system gives to outgoing connections, each process
of a test run has its own share, and a port that was given out comes again only
when all of the share were: a server may be away for a while and come back to its
own. What others on this machine listen on is found by trying.
"""

from __future__ import annotations

import os
import random
import socket
from itertools import cycle
from typing import Final

BUS: Final = 10_000
"""A Cluster's servers speak to each other on the port that is so much above; 6.2 knows no other."""

FIRST: Final = 11_000
SHARES: Final = 16
EACH: Final = BUS // SHARES

_share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
_candidates = cycle(random.sample(range(FIRST + _share * EACH, FIRST + (_share + 1) * EACH), EACH))


def free_port() -> int:
    """A port that nobody listens on, nor on the one :data:`BUS` above."""
    return next(port for port in _candidates if _is_free(port) and _is_free(port + BUS))


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
