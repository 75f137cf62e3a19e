"""A worker written from the wire contract alone: it asks for turns and answers them by hand."""

from __future__ import annotations

from typing import Any, Self

from tests.support.client import BASE, Api, eventually, some_id


class Worker:
    """Serves an agent of its own; :meth:`claim` takes the next turn."""

    def __init__(self, api: Api, **definition: Any) -> None:
        self.api = api
        self.agent_id = some_id()
        body = {"name": "By hand", "kind": "worker"} | definition
        assert api.http.put(f"/api/agents/{self.agent_id}", json=body).status_code == 201
        self._claim(wait=0)
        eventually(lambda: self.state() != "offline")

    def state(self) -> str:
        reply = self.api.http.get(f"/api/agents/{self.agent_id}/availability")
        assert reply.status_code == 200, reply.text
        return str(reply.json()["state"])

    def leave(self) -> None:
        """Say goodbye: the agent is offline."""
        self._claim(wait=0, capacity=0)

    def claim(self) -> Turn:
        turn = self._claim(wait=10)
        assert turn is not None, "no turn came"
        return turn

    def _claim(self, *, wait: float, capacity: int = 1) -> Turn | None:
        path = f"/api/agents/{self.agent_id}/turns/claim"
        reply = self.api.http.post(
            path, params={"wait": wait}, json={"worker": "by-hand", "capacity": capacity}
        )
        assert reply.status_code in {200, 204}, reply.text
        return Turn(self.api, reply.json()) if reply.status_code == 200 else None


class Turn:
    """One claimed turn."""

    def __init__(self, api: Api, claimed: dict[str, Any]) -> None:
        self.claimed = claimed
        self.id: str = claimed["turnId"]
        self.message_id: str = claimed["messageId"]
        self.text = ""
        self._api = api
        self._path = f"{BASE}/{claimed['session']['sessionId']}/turns/{self.id}"

    def say(self, text: str) -> Self:
        offset = len(self.text.encode("utf-16-le")) // 2
        self.write("delta", text=text, offset=offset)
        self.text += text
        return self

    def complete(self, **answer: Any) -> None:
        self.write("complete", **answer)

    def fail(self, *, retry: bool = False) -> None:
        self.write("fail", code="BOOM", message="It broke", retry=retry)

    def write(self, what: str, **body: Any) -> dict[str, Any]:
        reply = self._api.http.post(f"{self._path}/{what}", json={"fence": self.claimed["fence"]} | body)
        assert reply.status_code == 200, reply.text
        written: dict[str, Any] = reply.json()
        return written
