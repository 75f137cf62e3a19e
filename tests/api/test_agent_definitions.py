"""Agents' definitions over HTTP: what is taken, filled in or refused, and what is ever shown of secrets."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sessions_api.domain.agents import ECHO_ID
from tests.api.conftest import AGENT, AGENTS, ONE, WORKER, Api, fields, put
from tests.api.test_sessions import error_of

pytestmark = pytest.mark.servers("valkey", "fakeredis")
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
MASK = "********"
OPENAI: dict[str, Any] = {
    "name": "Model",
    "kind": "openai",
    "config": {"baseUrl": "https://llm.example.com/v1", "model": "small", "apiKey": "sk-very-secret"},
}


class TestPut:
    async def test_defines_an_agent_with_defaults_for_what_is_left_out(self, api: Api) -> None:
        reply = await api.http.put(ONE, json=WORKER)

        assert reply.status_code == 201
        assert reply.headers["location"] == ONE
        assert reply.json() == {
            "agentId": AGENT,
            "name": "Support",
            "kind": "worker",
            "config": {},
            "session": {},
            "history": 50,
            "turnTimeoutMs": 300_000,
            "maxAttempts": 3,
            "concurrency": 64,
            "availability": {"state": "offline"},
        }
        assert (await api.http.get(ONE)).json() == reply.json()

    async def test_takes_the_place_of_the_definition_before(self, api: Api) -> None:
        """Whole: what the second one leaves out is no longer set."""
        await put(api, WORKER | {"history": 7, "onBusy": "merge", "session": {"timeoutMinutes": 45}})

        reply = await api.http.put(ONE, json=WORKER | {"name": "Other"})

        assert reply.status_code == 200
        assert "location" not in reply.headers
        assert (reply.json()["name"], reply.json()["history"]) == ("Other", 50)
        assert reply.json()["session"] == {}
        assert "onBusy" not in reply.json()

    async def test_what_was_read_can_be_written(self, api: Api) -> None:
        shown = await put(api, OPENAI | {"session": {"SESSION_AUTO_RENEW": "false"}, "concurrency": 2})

        reply = await api.http.put(ONE, json=shown)

        assert reply.status_code == 200
        written = reply.json()
        written.pop("availability"), shown.pop("availability")  # which may have come about meanwhile
        assert written == shown
        assert shown["session"] == {"autoRenew": False}

    async def test_of_very_many_bad_fields_a_hundred_are_named(self, api: Api) -> None:
        """Or the refusal would be many times what was sent."""
        unknown = {f"{'x' * 300}{number}": 1 for number in range(500)}

        reply = await api.http.put(ONE, json=unknown | {"name": "A", "kind": "worker"})

        errors = reply.json()["error"]["details"]["errors"]
        assert reply.status_code == 400
        assert [len(errors), errors[-1]] == [101, {"field": "…", "reason": "and 400 more"}]
        assert all(len(each["field"]) <= 65 for each in errors)

    async def test_every_bad_field_is_named_at_once(self, api: Api) -> None:
        reply = await api.http.put(
            ONE,
            json={
                "agentId": ECHO_ID,
                "name": "",
                "kind": "openai",
                "config": {"baseUrl": "ftp://x", "apiKey": "sk hidden", "temperature": 3, "colour": 1},
                "session": {"timeoutMinutes": 1, "autoRenew": "perhaps", "idle": 3},
                "onBusy": "shout",
                "history": -1,
                "turnTimeoutMs": 1,
                "maxAttempts": True,
                "concurrency": "many",
                "colour": "red",
            },
        )

        error = error_of(reply, 400, "VALIDATION_ERROR")
        assert fields(error) == {
            "agentId",
            "name",
            "config.baseUrl",
            "config.model",
            "config.apiKey",
            "config.temperature",
            "config.colour",
            "session.timeoutMinutes",
            "session.autoRenew",
            "session.idle",
            "onBusy",
            "history",
            "turnTimeoutMs",
            "maxAttempts",
            "concurrency",
            "colour",
        }
        assert "sk hidden" not in reply.text, "a secret is not shown, not even a bad one"
        error_of(await api.http.get(ONE), 404, "AGENT_NOT_FOUND")

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"3", b'{"name":"x"}', b'{"name":"x","kind":null}'])
    async def test_refuses_what_is_no_definition(self, api: Api, body: bytes) -> None:
        reply = await api.http.put(ONE, content=body, headers={"content-type": "application/json"})

        error_of(reply, 400, "VALIDATION_ERROR")

    async def test_an_id_that_is_no_uuid_is_refused(self, api: Api) -> None:
        error = error_of(await api.http.put(f"{AGENTS}/support", json=WORKER), 400, "VALIDATION_ERROR")

        assert fields(error) == {"agentId"}

    async def test_ids_are_one_in_any_case(self, api: Api) -> None:
        await put(api, WORKER, AGENT.upper())

        assert (await api.http.get(ONE)).json()["agentId"] == AGENT

    @pytest.mark.parametrize(
        "url",
        [
            "http://user:hunter2@example.com/",
            "https://example.com/#part",
            "https:///path",
            "https://exa mple.com/",
            "https://example.com:0/",
            "https://example.com:99999/",
            "//example.com/",
            "https://example.com/" + "x" * 2000,
            "https://exämple.com/",
            7,
        ],
    )
    async def test_refuses_a_url_that_is_not_plain(self, api: Api, url: object) -> None:
        reply = await api.http.put(ONE, json={"name": "x", "kind": "webhook", "config": {"url": url}})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.url"}
        assert "hunter2" not in reply.text

    async def test_says_which_base_url_is_plain(self, api: Api) -> None:
        config = OPENAI["config"] | {"baseUrl": "https://example.com/v1?key=1"}

        error = error_of(await api.http.put(ONE, json=OPENAI | {"config": config}), 400, "VALIDATION_ERROR")

        [bad] = error["details"]["errors"]
        allowed = "an absolute http:// or https:// URL without user, password, query or fragment"
        assert bad["allowed"] == allowed

    @pytest.mark.parametrize("name", ["two\nlines", "\x00", "\x1b[31mred", "a\x7f", "a\x85b", "a\u2028b"])
    async def test_a_name_holds_no_control_characters(self, api: Api, name: str) -> None:
        """It stands in terminals and in headings."""
        error = error_of(await api.http.put(ONE, json=WORKER | {"name": name}), 400, "VALIDATION_ERROR")

        assert fields(error) == {"name"}

    async def test_a_name_may_be_in_any_script(self, api: Api) -> None:
        assert (await put(api, WORKER | {"name": "Übersetzer 翻訳 🌍"}))["name"] == "Übersetzer 翻訳 🌍"

    @pytest.mark.parametrize(
        "session, field",
        [
            ({"timeoutMinutes": 10, "warningThresholdMinutes": 10}, "session.warningThresholdMinutes"),
            ({"timeoutMinutes": 10, "maxDurationMinutes": 9}, "session.maxDurationMinutes"),
        ],
    )
    async def test_timeouts_that_contradict_each_other_are_refused(
        self, api: Api, session: dict[str, int], field: str
    ) -> None:
        """As a session's own are."""
        reply = await api.http.put(ONE, json=WORKER | {"session": session})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {field}

    async def test_a_timeout_alone_contradicts_nothing(self, api: Api) -> None:
        await put(api, WORKER | {"session": {"warningThresholdMinutes": 60, "maxDurationMinutes": 120}})

    async def test_an_agent_of_this_replica_is_there_at_once(self, api: Api) -> None:
        """Nobody has to wait for the dispatcher's next round to create a session."""
        shown = await put(api, {"name": "Second", "kind": "echo"})
        assert shown["agentId"] == AGENT

        await api.create(agentId=AGENT)

    async def test_live_sessions_keep_what_they_were_created_with(self, api: Api) -> None:
        await put(api, {"name": "x", "kind": "echo", "session": {"timeoutMinutes": 45}})
        info = await api.create(agentId=AGENT)

        await put(api, {"name": "x", "kind": "echo", "session": {"timeoutMinutes": 7}})

        assert (await api.http.get(api.url(info))).json()["timeoutConfig"]["timeoutMinutes"] == 45
        assert (await api.create(agentId=AGENT))["timeoutConfig"]["timeoutMinutes"] == 7


class TestSecrets:
    async def test_a_webhook_gets_one_that_is_shown_once(self, api: Api) -> None:
        hook = {"name": "Hook", "kind": "webhook", "config": {"url": "https://example.com/agent"}}

        made = (await put(api, hook))["config"]["secret"]

        assert len(base64.b64decode(made.removeprefix("whsec_"))) == 32
        for shown in (
            (await api.http.get(ONE)).json(),
            next(a for a in (await api.http.get(AGENTS)).json()["agents"] if a["agentId"] == AGENT),
        ):
            assert shown["config"] == {"url": "https://example.com/agent", "secret": MASK}
        stored = api.state.store.agents.get(AGENT)
        assert stored is not None
        assert stored.config["secret"] == made

    async def test_what_was_sent_is_never_shown(self, api: Api) -> None:
        config = {"url": "https://example.com/agent", "secret": SECRET}

        replies = [
            await api.http.put(ONE, json={"name": "Hook", "kind": "webhook", "config": config}),
            await api.http.put(ONE, json=OPENAI),
            await api.http.get(ONE),
            await api.http.get(AGENTS),
        ]

        assert all(reply.status_code in {200, 201} for reply in replies)
        assert not any(SECRET in reply.text or "sk-very-secret" in reply.text for reply in replies)

    async def test_the_mask_keeps_what_is_stored(self, api: Api) -> None:
        await put(api, OPENAI)

        await put(api, OPENAI | {"name": "Renamed", "config": OPENAI["config"] | {"apiKey": MASK}})

        stored = api.state.store.agents.get(AGENT)
        assert stored is not None
        assert (stored.name, stored.config["apiKey"]) == ("Renamed", "sk-very-secret")

    async def test_the_mask_keeps_nothing_where_nothing_is_stored(self, api: Api) -> None:
        masked = OPENAI | {"config": OPENAI["config"] | {"apiKey": MASK}}

        reply = await api.http.put(ONE, json=masked)

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.apiKey"}

    async def test_a_key_does_not_follow_to_another_address(self, api: Api) -> None:
        """Else whoever may change the address could have the key sent there."""
        await put(api, OPENAI)
        elsewhere = {"baseUrl": "https://elsewhere.example.com/v1", "model": "small", "apiKey": MASK}

        reply = await api.http.put(ONE, json=OPENAI | {"config": elsewhere})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.apiKey"}

    async def test_the_environment_cannot_be_read_through_a_definition(self, api: Api) -> None:
        config = {"baseUrl": "https://elsewhere.example.com", "model": "x", "apiKeyEnv": "REDIS_URL"}

        reply = await api.http.put(ONE, json=OPENAI | {"config": config})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.apiKeyEnv"}

    @pytest.mark.parametrize("secret", ["whsec_", "whsec_AAAA", SECRET[6:], SECRET + "!", 7, ""])
    async def test_a_signing_secret_is_one(self, api: Api, secret: object) -> None:
        config = {"url": "https://example.com", "secret": secret}

        reply = await api.http.put(ONE, json={"name": "x", "kind": "webhook", "config": config})

        assert fields(error_of(reply, 400, "VALIDATION_ERROR")) == {"config.secret"}
