"""A bit of everything that clients and workers do, so that every metric has something to count."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.support.client import Api, received_until, some_id

SHORT: Final = {"timeoutMinutes": 0.02, "warningThresholdMinutes": 0.015, "autoRenew": False}
SAID: Final = {
    "metadata": {"actions": [{"name": "look_up"}]},
    "usage": {"inputTokens": 12, "outputTokens": 7},
}


class Traffic:
    """One client that is also the one worker of an agent of its own; :meth:`round` may be repeated."""

    def __init__(self, url: str) -> None:
        self._api = Api(url)
        self._agent = some_id()
        self._claim = f"/api/agents/{self._agent}/turns/claim"
        defined = {"name": "By hand", "kind": "worker", "maxAttempts": 1}
        self._api.http.put(f"/api/agents/{self._agent}", json=defined).raise_for_status()

    def close(self) -> None:
        self._api.close()

    def round(self) -> None:
        self._converse()
        self._follow()
        self._keep_alive()
        self._work()
        self._err()
        self._expire()

    def _converse(self) -> None:
        session_id = self._api.session()
        self._api.say(session_id, "and go on")
        assert self._api.ask(session_id, "hello")["agentResponse"]["text"] == "echo: hello"
        with self._api.stream_post(session_id, "by sse") as stream:
            assert stream.until("done")
        assert self._api.history(session_id)["messages"]
        assert self._api.call("GET", "").status_code == 200

    def _follow(self) -> None:
        session_id = self._api.session()
        with self._api.events(session_id) as stream, self._api.websocket(session_id) as socket:
            assert stream.next().name == "session.snapshot"
            socket.send(json.dumps({"type": "message", "ref": "1", "content": "by frame"}))
            received_until(socket, "turn.completed")
            first = next(event.id for event in stream.until("turn.completed") if event.id)
        with self._api.events(session_id, last_event_id=first) as stream:
            stream.until("message.created")
            assert self._api.call("DELETE", f"/{session_id}").status_code == 200
            assert stream.rest()[-1].data["data"]["code"] == 4404

    def _keep_alive(self) -> None:
        session_id = self._api.session()
        for path in ("renew", "heartbeat"):
            assert self._api.call("POST", f"/{session_id}/{path}").status_code == 200
        patched = self._api.call("PATCH", f"/{session_id}/timeout", json={"timeoutMinutes": 40})
        assert patched.status_code == 200, patched.text

    def _work(self) -> None:
        """A turn that is completed, with all that an answer may say of itself, and one that fails."""
        assert self._claimed(wait=0) is None  # its worker says hello
        session_id = self._api.session(agentId=self._agent)
        for ending, body in (("complete", SAID), ("fail", {"code": "TRIED", "message": "on purpose"})):
            self._api.say(session_id, ending)
            turn = self._claimed(wait=10)
            assert turn is not None
            self._write(turn, "delta", text="so far", offset=0)
            self._write(turn, "extend")
            self._write(turn, ending, **body)

    def _claimed(self, *, wait: int) -> dict[str, Any] | None:
        reply = self._api.http.post(self._claim, params={"wait": wait}, json={"worker": "by-hand"})
        assert reply.status_code in {200, 204}, reply.text
        return dict(reply.json()) if reply.status_code == 200 else None

    def _write(self, turn: dict[str, Any], what: str, **body: Any) -> None:
        path = f"/{turn['session']['sessionId']}/turns/{turn['turnId']}/{what}"
        reply = self._api.call("POST", path, json={"fence": turn["fence"], **body})
        assert reply.status_code == 200, reply.text

    def _err(self) -> None:
        assert self._api.call("GET", f"/{some_id()}").status_code == 404
        assert self._api.call("POST", "", json={}).status_code == 400

    def _expire(self) -> None:
        session_id = self._api.session(timeoutConfig=SHORT)
        with self._api.events(session_id) as stream:
            names = [event.name for event in stream.until("session.expired")]
        assert "session.expiring" in names
