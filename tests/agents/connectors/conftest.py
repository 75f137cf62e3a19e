"""What the connectors' tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from sessions_api.agents.connectors.outgoing import Outgoing


@pytest.fixture
async def outgoing() -> AsyncIterator[Outgoing]:
    """Allowed to reach 127.0.0.0/8."""
    outgoing = Outgoing([ip_network("127.0.0.0/8")])
    yield outgoing
    await outgoing.aclose()
