"""One whole life of the service over HTTP: every request there is, and every way a session or a turn ends."""

from __future__ import annotations

import json
from typing import Any

from tests.support.client import Api, eventually, received_until, some_id

SHORT = {"timeoutMinutes": 0.02, "warningThresholdMinutes": 0.015, "autoRenew": False}


class Life:
    """What a service and its callers do, in parts that :meth:`live` puts together."""

    def __init__(self, api: Api, key: str) -> None:
        """*key* opens everything."""
        self._api = api
        self._key = {"X-API-KEY": key}
        api.http.headers.update(self._key)
        self._agent = some_id()

    def live(self) -> None:
        self._define()
        self._talk()
        self._configure()
        self._follow()
        self._admit()
        self._work()
        self._look()
        self._forget()
        self._expire()

    def _define(self) -> None:
        self._put(f"/api/agents/{self._agent}", {"name": "By hand", "kind": "worker", "maxAttempts": 2})
        assert self._claim(wait=0) is None  # its worker says hello
        eventually(lambda: self._get(f"/api/agents/{self._agent}/availability")["state"] != "offline")
        assert self._agent in json.dumps(self._get("/api/agents"))
        assert self._get(f"/api/agents/{self._agent}")["name"] == "By hand"

    def _talk(self) -> None:
        api = self._api
        session_id = api.session()
        api.say(session_id, "by websocket")
        assert api.ask(session_id, "by http")["agentResponse"]["text"] == "echo: by http"
        with api.stream_post(session_id, "by sse") as stream:
            assert stream.until("done")
        for _ in range(2):
            assert api.post(session_id, "once", headers={"Idempotency-Key": "one"}).status_code == 201
        page = api.history(session_id, limit=3)
        assert api.history(session_id, limit=2, before=page["cursors"]["before"])["messages"]
        assert api.history(session_id, limit=2, after=1)["messages"]
        assert api.post(session_id, "unasked", role="system").status_code == 201

    def _configure(self) -> None:
        session_id = self._api.session()
        self._post(f"/{session_id}/renew")
        self._post(f"/{session_id}/heartbeat")
        patched = self._api.call("PATCH", f"/{session_id}/timeout", json={"timeoutMinutes": 45})
        assert patched.status_code == 200, patched.text
        assert self._api.get(session_id)["timeoutConfig"]["timeoutMinutes"] == 45
        assert self._api.call("DELETE", f"/{session_id}").status_code == 200
        assert self._api.call("GET", f"/{session_id}").status_code == 404

    def _follow(self) -> None:
        api = self._api
        session_id = api.session()
        with api.events(session_id) as stream:
            assert stream.next().name == "session.snapshot"
            api.say(session_id, "live")
            seen = stream.until("turn.completed")
        cursors = [event.id for event in seen if event.id]
        with api.events(session_id, last_event_id=cursors[0]) as stream:
            stream.until("message.created")
        with api.websocket(session_id, additional_headers=self._key) as socket:
            socket.send(json.dumps({"type": "message", "ref": "1", "content": "by frame"}))
            received_until(socket, "turn.completed")

    def _admit(self) -> None:
        """A session token: made, renewed by itself, used, revoked."""
        session_id = self._api.session()
        made = self._api.call("POST", f"/{session_id}/tokens")
        assert made.status_code == 201, made.text
        shown = {"X-API-KEY": made.json()["token"]}
        assert self._api.call("POST", f"/{session_id}/tokens/refresh", headers=shown).status_code == 201
        assert self._api.call("GET", f"/{session_id}", headers=shown).status_code == 200
        assert self._api.call("DELETE", f"/{session_id}/tokens").status_code == 200
        assert self._api.call("GET", f"/{session_id}", headers=shown).status_code == 401
        eventually(lambda: "lastUsedAt" in self._get("/api/keys")["keys"][0])

    def _work(self) -> None:
        """Turns that are completed, failed, handed back, tried again, cancelled and interrupted."""
        session_id = self._api.session(agentId=self._agent)
        for ending in ("complete", "fail", "release", "fail again"):
            self._api.say(session_id, ending)
            turn = self._claim()
            assert turn is not None
            self._write(turn, "delta", text="so far", offset=0)
            self._write(turn, "extend")
            if ending == "release":
                self._write(turn, "release")
                again = self._claim()
                assert again is not None
                assert again["turnId"] == turn["turnId"]
                self._write(again, "complete", content="")
            elif ending == "complete":
                self._write(turn, "complete")
            else:
                retry = ending == "fail again"
                self._write(turn, "fail", code="TRIED", message="on purpose", retry=retry)
                if retry:
                    again = self._claim(wait=20)
                    assert again is not None
                    self._write(again, "complete", content="at last")
            assert self._get_turn(turn)["state"] in {"completed", "failed"}
        self._api.say(session_id, "cancelled")
        turn = self._claim()
        assert turn is not None
        eventually(lambda: self._get(f"/api/agents/{self._agent}/availability")["state"] == "busy")
        for on_busy in ("queue", "merge", "interrupt"):
            self._api.say(session_id, on_busy, onBusy=on_busy)
        turn = self._claim()
        assert turn is not None
        self._post(f"/{session_id}/turns/{turn['turnId']}/cancel")
        self._api.say(session_id, "never answered")

    def _look(self) -> None:
        assert self._get("/api/messaging/sessions")["sessions"]
        assert self._get(f"/api/messaging/sessions?agentId={self._agent}")["sessions"]
        user_id = self._api.create()["userId"]
        assert self._get(f"/api/messaging/sessions?userId={user_id}")["total"] == 1
        assert self._get("/api/messaging/sessions/health")["status"] == "healthy"
        assert "sessions_" in self._api.http.get("/metrics").text

    def _forget(self) -> None:
        forgotten = self._api.http.delete(f"/api/agents/{self._agent}", params={"force": "true"})
        assert forgotten.status_code == 200, forgotten.text

    def _expire(self) -> None:
        session_id = self._api.session(timeoutConfig=SHORT)
        with self._api.events(session_id) as stream:
            names = [event.name for event in stream.until("session.expired")]
        assert "session.expiring" in names
        assert self._api.call("GET", f"/{session_id}").status_code == 410
        assert self._api.call("GET", f"/{session_id}/messages", params={"ended": "true"}).status_code == 200

    # ------------------------------------------------------------ requests

    def _get(self, path: str) -> Any:
        reply = self._api.http.get(path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def _put(self, path: str, body: dict[str, Any]) -> None:
        reply = self._api.http.put(path, json=body)
        assert reply.status_code in {200, 201}, reply.text

    def _post(self, path: str, **body: Any) -> Any:
        reply = self._api.call("POST", path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def _claim(self, *, wait: int = 10) -> dict[str, Any] | None:
        path = f"/api/agents/{self._agent}/turns/claim"
        reply = self._api.http.post(path, params={"wait": wait}, json={"worker": "by-hand", "capacity": 1})
        assert reply.status_code in {200, 204}, reply.text
        return dict(reply.json()) if reply.status_code == 200 else None

    def _write(self, turn: dict[str, Any], what: str, **body: Any) -> None:
        path = f"/{turn['session']['sessionId']}/turns/{turn['turnId']}/{what}"
        self._post(path, fence=turn["fence"], **body)

    def _get_turn(self, turn: dict[str, Any]) -> Any:
        return self._get(f"/api/messaging/sessions/{turn['session']['sessionId']}/turns/{turn['turnId']}")
