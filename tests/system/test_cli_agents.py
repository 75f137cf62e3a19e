"""``sessions-api agents``: what it prints, puts and refuses; and a chat with an agent that is away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.support.client import eventually
from tests.support.commands import USER, RunningService, command
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(120)
ECHO = "00000000-0000-4000-8000-000000000001"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def agent() -> str:
    return str(uuid4())


def agents(
    service: RunningService, *words: str, text: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return command("agents", *words, env={"SESSIONS_URL": service.url} | env, text=text)


def defined(service: RunningService, agent: str) -> dict[str, Any]:
    reply = httpx2.get(f"{service.url}/api/agents/{agent}", trust_env=False)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


class TestHelp:
    @pytest.mark.parametrize("verb", ["ls", "show", "put", "rm"])
    def test_of_each_verb(self, verb: str) -> None:
        shown = command("agents", verb, "--help")

        assert shown.returncode == 0
        assert f"usage: sessions-api agents {verb}" in shown.stdout

    def test_without_a_verb_names_them(self) -> None:
        refused = command("agents")

        assert refused.returncode == 2
        assert "ls | show | put | rm" in refused.stderr


class TestLs:
    def test_shows_who_is_there(self, service: RunningService, agent: str) -> None:
        agents(service, "put", agent, "--name", "Nobody", "--kind", "worker")

        shown = agents(service, "ls").stdout

        rows = {line.split()[0]: line.split() for line in shown.splitlines()}
        assert rows["AGENT"] == ["AGENT", "NAME", "KIND", "STATE", "SINCE"]
        assert rows[ECHO][1:4] == ["Echo", "echo", "available"]
        assert rows[agent] == [agent, "Nobody", "worker", "offline", "-"]

    def test_as_json_is_what_the_api_sends(self, service: RunningService) -> None:
        lines = [json.loads(line) for line in agents(service, "ls", "--json").stdout.splitlines()]

        assert ECHO in {each["agentId"] for each in lines}


class TestPut:
    def test_from_options(self, service: RunningService, agent: str) -> None:
        put = agents(
            service, "put", agent, "--name", "Support", "--kind", "worker", "--set", "onBusy=merge",
            "--set", "session.timeoutMinutes=45", "--set", "session.autoRenew=false",
        )  # fmt: skip

        assert put.stdout == f"{agent} Support (worker) is defined\n"
        found = defined(service, agent)
        assert found["onBusy"] == "merge"
        assert found["session"] == {"timeoutMinutes": 45, "autoRenew": False}

    def test_from_a_file_of_several(self, service: RunningService, tmp_path: Path) -> None:
        ids = [str(uuid4()), str(uuid4())]
        path = tmp_path / "agents.toml"
        path.write_text("".join(f'[[agents]]\nid = "{each}"\nname = "A"\nkind = "echo"\n' for each in ids))

        put = agents(service, "put", "--file", str(path))

        assert put.returncode == 0, put.stderr
        assert [defined(service, each)["name"] for each in ids] == ["A", "A"]

    def test_from_what_show_prints(self, service: RunningService, agent: str) -> None:
        """A definition goes from one service to another, or through an editor."""
        agents(service, "put", agent, "--name", "Before", "--kind", "echo", "--set", "config.delayMs=5")
        shown = agents(service, "show", agent, "--json").stdout

        put = agents(service, "put", "--file", "-", "--name", "After", text=shown)

        assert put.returncode == 0, put.stderr
        found = defined(service, agent)
        assert (found["name"], found["config"]) == ("After", {"delayMs": 5})

    def test_takes_a_secret_from_this_environment(
        self, service: RunningService, agent: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.toml"
        path.write_text(
            f'id = "{agent}"\nname = "Model"\nkind = "openai"\n[config]\n'
            'baseUrl = "https://llm.example.com/v1"\nmodel = "small"\napiKeyEnv = "LLM_KEY"\n'
        )

        missing = agents(service, "put", "--file", str(path))
        put = agents(service, "put", "--file", str(path), LLM_KEY="sk-very-secret")

        assert missing.returncode == 2
        assert (
            missing.stderr
            == "sessions-api agents: config.apiKeyEnv: LLM_KEY is not set in this environment\n"
        )
        assert put.returncode == 0, put.stderr
        assert defined(service, agent)["config"]["apiKey"] == "********"
        assert "sk-very-secret" not in put.stdout + agents(service, "show", agent).stdout

    def test_of_the_example_is_a_model(self, service: RunningService) -> None:
        put = agents(
            service, "put", "--file", "examples/openai.toml", LLM_API_KEY="sk-1", OPENAI_API_KEY="sk-1"
        )

        assert put.returncode == 0, put.stderr
        assert "(openai) is defined" in put.stdout

    def test_shows_a_signing_secret_that_was_made_once(self, service: RunningService, agent: str) -> None:
        words = (
            "put",
            agent,
            "--name",
            "Hook",
            "--kind",
            "webhook",
            "--set",
            "config.url=https://a.example/x",
        )

        first = agents(service, *words)
        again = agents(service, *words, "--set", "config.secret=********")

        assert "shown this once: whsec_" in first.stdout
        assert "whsec_" not in again.stdout

    def test_keeps_a_webhooks_secret_unless_told_otherwise(self, service: RunningService, agent: str) -> None:
        """Its receiver knows no other; a moved URL must not break the signature."""
        words = ("put", agent, "--name", "Hook", "--kind", "webhook")
        agents(service, *words, "--set", "config.url=https://a.example/x")

        moved = agents(service, *words, "--set", "config.url=https://b.example/x")
        renewed = agents(
            service, *words, "--set", "config.url=https://b.example/x", "--set", "config.secret="
        )

        assert moved.returncode == 0, moved.stderr
        assert "whsec_" not in moved.stdout
        assert defined(service, agent)["config"]["url"] == "https://b.example/x"
        assert "shown this once: whsec_" in renewed.stdout

    def test_makes_a_secret_for_an_agent_that_was_no_webhook(
        self, service: RunningService, agent: str
    ) -> None:
        agents(service, "put", agent, "--name", "Hook", "--kind", "worker")

        put = agents(
            service,
            "put",
            agent,
            "--name",
            "Hook",
            "--kind",
            "webhook",
            "--set",
            "config.url=https://a.example",
        )

        assert "shown this once: whsec_" in put.stdout

    def test_names_every_bad_field(self, service: RunningService, agent: str) -> None:
        refused = agents(service, "put", agent, "--kind", "human", "--set", "history=-1")

        assert refused.returncode == 1
        assert refused.stderr.startswith(f"sessions-api agents: {agent} is not defined:\n")
        for field in ("name ", "kind ('human') ", "history (-1) "):
            assert f"\n  {field}" in refused.stderr

    @pytest.mark.parametrize(
        "words, told",
        [
            (("--name", "A"), "which agent?"),
            (("--file", "nowhere.toml"), "nowhere.toml cannot be read: No such file"),
            ((ECHO, "--set", "nonsense"), "write KEY=VALUE"),
            ((ECHO, "--set", "name.x=1", "--set", "name.x.y=1"), "is a value"),
        ],
    )
    def test_says_what_it_cannot_read(
        self, service: RunningService, words: tuple[str, ...], told: str
    ) -> None:
        refused = agents(service, "put", *words)

        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert told in refused.stderr

    @pytest.mark.parametrize("text", ["no: toml = 1", "7", '[["a"]]'])
    def test_says_when_a_file_holds_no_agent(
        self, service: RunningService, tmp_path: Path, text: str
    ) -> None:
        path = tmp_path / ("agents.toml" if "toml" in text else "agents.json")
        path.write_text(text)

        refused = agents(service, "put", "--file", str(path))

        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert str(path) in refused.stderr

    def test_refuses_options_for_several_agents(self, service: RunningService, tmp_path: Path) -> None:
        path = tmp_path / "agents.json"
        path.write_text(json.dumps({"agents": [{"id": str(uuid4())}, {"id": str(uuid4())}]}))

        refused = agents(service, "put", "--file", str(path), "--name", "Both")

        assert refused.returncode == 2
        assert "defines 2 agents" in refused.stderr


class TestShow:
    def test_tells_the_definition_and_what_there_is_to_do(self, service: RunningService) -> None:
        shown = agents(service, "show", ECHO).stdout

        lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
        assert lines["name"] == "Echo"
        assert lines["state"].startswith("available since ")
        assert lines["turns"] == "0 running; sessions that wait: 0"
        assert lines["turnTimeoutMs"] == "300000"

    def test_of_an_unknown_agent_is_one_line(self, service: RunningService, agent: str) -> None:
        refused = agents(service, "show", agent)

        assert refused.returncode == 1
        assert "AGENT_NOT_FOUND" in refused.stderr
        assert refused.stderr.count("\n") == 1

    def test_without_a_service_says_how_to_start_one(self) -> None:
        refused = command("agents", "show", ECHO, env={"PORT": str(free_port())})

        assert refused.returncode == 1
        assert "start one with `sessions-api dev`" in refused.stderr


class TestRm:
    def test_forgets(self, service: RunningService, agent: str) -> None:
        agents(service, "put", agent, "--name", "Short", "--kind", "worker")

        gone = agents(service, "rm", agent)

        assert gone.returncode == 0
        assert agents(service, "show", agent).returncode == 1

    def test_with_live_sessions_only_by_force(self, service: RunningService, agent: str) -> None:
        agents(service, "put", agent, "--name", "Used", "--kind", "echo")
        available(service, agent)
        service.create(agentId=agent)

        refused = agents(service, "rm", agent)
        forced = agents(service, "rm", agent, "--force")

        assert refused.returncode == 1
        assert "--force" in refused.stderr
        assert forced.returncode == 0
        assert forced.stdout.startswith(f"{agent} is forgotten")


class TestChat:
    def test_with_an_agent_of_ones_own(self, service: RunningService, agent: str) -> None:
        agents(service, "put", agent, "--name", "Own", "--kind", "echo")
        available(service, agent)

        shown = chat(service, agent, "hello\n")

        assert shown.returncode == 0, shown.stderr
        assert shown.stdout == "echo: hello\n"

    def test_waits_for_an_agent_that_is_being_started(self, service: RunningService, agent: str) -> None:
        with ThreadPoolExecutor(1) as pool:
            chatting = pool.submit(chat, service, agent, "hello\n", "--wait", "50")
            agents(service, "put", agent, "--name", "Own", "--kind", "echo")
            shown = chatting.result()

        assert shown.returncode == 0, shown.stderr
        assert shown.stdout == "echo: hello\n"

    def test_says_that_it_waits(self, service: RunningService, agent: str) -> None:
        refused = chat(service, agent, "hello\n", "--wait", "0.1")

        assert refused.returncode == 1
        told, error = refused.stderr.splitlines()
        assert told == "the agent is not there yet; waiting up to 0.1 s for it"
        assert "AGENT_NOT_FOUND" in error

    def test_with_nobody_there_says_so(self, service: RunningService, agent: str) -> None:
        agents(service, "put", agent, "--name", "Away", "--kind", "worker")

        refused = chat(service, agent, "hello\n", "--wait", "0")

        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "AGENT_UNAVAILABLE" in refused.stderr

    def test_with_an_agent_that_nobody_defined_says_so(self, service: RunningService, agent: str) -> None:
        refused = chat(service, agent, "hello\n", "--wait", "0")

        assert refused.returncode == 1
        assert "AGENT_NOT_FOUND" in refused.stderr


def chat(service: RunningService, agent: str, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = ("chat", "--agent", agent, "--user", USER, *more)
    return command(*words, env={"SESSIONS_URL": service.url}, text=text)


def available(service: RunningService, agent: str) -> None:
    """Wait until the service's own dispatcher answers for a new agent."""
    url = f"{service.url}/api/agents/{agent}/availability"
    eventually(lambda: httpx2.get(url, trust_env=False).json()["state"] == "available")
