"""A follower that does what docs/api.md says of ``gap: rewound``: it reloads the history, and goes on."""

from __future__ import annotations

from typing import Any

from tests.support.client import BASE
from tests.support.load import LOGGED, Follower
from tests.support.streams import EventStream


class Reloading(Follower):
    """Keeps what a careful client shows: after a rewound gap what the history says, else what it was told."""

    rewound = 0

    async def _connection(self) -> None:
        port = int(self.chat.urls[self._at % len(self.chat.urls)].rpartition(":")[2])
        path = f"{BASE}/{self.chat.session_id}/events"
        async with EventStream(port, path, {"Last-Event-ID": str(self.cursor)}) as stream:
            if stream.status != 200:
                return
            self.connections += 1
            reloaded = 0
            while (frame := await stream.next(within_s=60)) is not None:
                if frame.event == "gap" and frame.data["data"]["reason"] == "rewound":
                    await self._reload()
                    reloaded = self.cursor
                elif frame.event == "gap":
                    self.faults.append(f"gap: {frame.data}")
                elif frame.event in LOGGED and frame.data["cursor"] > reloaded:
                    self._take(frame.data)

    async def _reload(self) -> None:
        messages: list[dict[str, Any]] = await self.chat.history(at=self._at % len(self.chat.urls))
        self.entries = messages
        self.cursor = messages[-1]["cursor"] if messages else 0
        self.rewound += 1
