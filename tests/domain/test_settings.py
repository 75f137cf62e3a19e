"""Settings: read once, checked whole, refused with the name, the value and the range."""

from __future__ import annotations

from pathlib import Path

import pytest

from sessions_api.domain.agents import ECHO_ID
from sessions_api.errors import SettingsError
from sessions_api.settings import IGNORED, VARIABLES, Settings, range_of


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return caught.value.problems


class TestDefaults:
    def test_an_empty_environment_is_enough(self) -> None:
        settings = Settings.from_env({})

        assert (settings.host, settings.port) == ("127.0.0.1", 3000)
        assert settings.default_config.timeout_ms == 30 * 60_000
        assert settings.default_config.max_duration_ms == 720 * 60_000
        assert settings.retention_ms == 60 * 60_000
        assert settings.agents == ()

    def test_an_empty_value_is_the_default(self) -> None:
        assert Settings.from_env({"PORT": "", "SESSION_RETENTION_MINUTES": " "}) == Settings.from_env({})

    def test_dev_brings_echo(self) -> None:
        assert [agent.agent_id for agent in Settings.from_env({"SESSIONS_DEV": "on"}).agents] == [ECHO_ID]

    def test_every_variable_says_its_range(self) -> None:
        assert all(range_of(name) for name in VARIABLES)


class TestRefusals:
    @pytest.mark.parametrize(
        "name, value, allowed",
        [
            ("PORT", "65536", "0..65535"),
            ("SESSIONS_METRICS_PORT", "-1", "0..65535"),
            ("PORT", "12abc", "0..65535"),
            ("SESSION_DEFAULT_TIMEOUT_MINUTES", "0", "1..10080"),
            ("SESSION_DEFAULT_TIMEOUT_MINUTES", "nan", "1..10080"),
            ("SESSION_DEFAULT_TIMEOUT_MINUTES", "inf", "1..10080"),
            ("SESSION_MIN_TIMEOUT_MINUTES", "0.5", "1..60"),
            ("SESSION_MAX_DURATION_MINUTES", "20160.5", "1..20160"),
            ("SESSION_RETENTION_MINUTES", "4.9", "5..43200"),
            ("SESSION_AUTO_RENEW", "maybe", "on | off"),
            ("LOG_LEVEL", "loud", "debug | info | warning | error | critical"),
        ],
    )
    def test_names_the_variable_its_value_and_the_range(self, name: str, value: str, allowed: str) -> None:
        assert problems({name: value}) == [f"{name}={value!r}: allowed is {allowed}"]

    def test_the_metrics_port_is_another_one(self) -> None:
        """0 leaves /metrics on PORT; the same number twice could only mean a mistake."""
        assert "allowed is another port" in problems({"SESSIONS_METRICS_PORT": "3000"})[0]
        assert Settings.from_env({"SESSIONS_METRICS_PORT": "3001"}).sessions_metrics_port == 3001

    def test_lists_every_problem(self) -> None:
        assert len(problems({"PORT": "x", "LOG_LEVEL": "x", "SESSION_RETENTION_MINUTES": "x"})) == 3

    def test_a_misspelt_name_is_refused_with_the_nearest(self) -> None:
        (problem,) = problems({"SESSION_DEFAULT_TIMEOUT_MINUTE": "5"})

        assert problem.startswith("SESSION_DEFAULT_TIMEOUT_MINUTE is no setting of this service")
        assert problem.endswith("did you mean SESSION_DEFAULT_TIMEOUT_MINUTES?")

    def test_the_default_lies_between_minimum_and_maximum(self) -> None:
        assert "SESSION_MIN_TIMEOUT_MINUTES" in problems({"SESSION_MIN_TIMEOUT_MINUTES": "40"})[0]
        assert "SESSION_MAX_TIMEOUT_MINUTES" in problems({"SESSION_MAX_TIMEOUT_MINUTES": "20"})[0]

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
    def test_an_address_that_others_reach_is_refused_without_keys(self, host: str) -> None:
        assert "access keys" in problems({"HOST": host})[0]

    def test_a_redis_url_is_not_shown(self) -> None:
        assert "secret" not in repr(problems({"REDIS_URL": "redis://:secret@localhost", "PORT": "x"}))


class TestOutgoing:
    def test_networks_and_addresses_may_be_allowed(self) -> None:
        settings = Settings.from_env({"SESSIONS_OUTGOING_ALLOW": "10.1.0.0/16, 192.168.7.20,fd00::/8"})

        assert [str(network) for network in settings.outgoing_allow] == [
            "10.1.0.0/16",
            "192.168.7.20/32",
            "fd00::/8",
        ]

    def test_this_machine_is_allowed_only_in_dev(self) -> None:
        assert Settings.from_env({}).outgoing_allow == ()
        assert "127.0.0.0/8" in map(str, Settings.from_env({"SESSIONS_DEV": "on"}).outgoing_allow)

    @pytest.mark.parametrize("value", ["10.1.0.1/16", "localhost", "10.0.0.0/40", "10.0.0.1;10.0.0.2"])
    def test_anything_else_is_refused(self, value: str) -> None:
        (problem,) = problems({"SESSIONS_OUTGOING_ALLOW": value})

        assert problem.startswith(f"SESSIONS_OUTGOING_ALLOW={value!r}: ")
        assert "allowed are networks" in problem


class TestForTests:
    def test_fractions_make_seconds(self) -> None:
        settings = Settings.from_env(
            {
                "SESSIONS_ENV": "test",
                "SESSION_MIN_TIMEOUT_MINUTES": "0.01",
                "SESSION_DEFAULT_TIMEOUT_MINUTES": "0.05",
                "SESSION_RETENTION_MINUTES": "0.1",
            }
        )

        assert settings.default_config.timeout_ms == 3_000
        assert settings.bounds.min_ms == 600
        assert settings.retention_ms == 6_000

    @pytest.mark.parametrize("name", IGNORED)
    def test_the_references_own_variables_are_accepted_and_named(self, name: str) -> None:
        assert Settings.from_env({name: "5"}).ignored == (name,)


AGENTS = """
[[agents]]
id = "7D1F0F6E-2F57-4A8B-9D5C-0F1F7A1C9E11"
name = "Support"
kind = "echo"
onBusy = "merge"
turnTimeoutMs = 60000
[agents.session]
SESSION_TIMEOUT_MINUTES = 45
SESSION_AUTO_RENEW = "false"
warningThresholdMinutes = 2.5
"""


SECRET = "whsec_" + "QUJD" * 8
KINDS = """
[[agents]]
id = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
name = "Worker"
kind = "worker"

[[agents]]
id = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e12"
name = "Hook"
kind = "webhook"
concurrency = 7
[agents.config]
url = "https://agent.example.com/"
secretEnv = "HOOK_SECRET"

[[agents]]
id = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e13"
name = "Model"
kind = "openai"
[agents.config]
baseUrl = "https://llm.example.com/v1"
model = "small"
apiKeyEnv = "LLM_KEY"
"""


class TestAgentsFile:
    def test_reads_both_spellings(self, tmp_path: Path) -> None:
        path = tmp_path / "agents.toml"
        path.write_text(AGENTS)

        (agent,) = Settings.from_env({"SESSIONS_AGENTS_FILE": str(path)}).agents

        assert agent.agent_id == "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
        assert agent.session.timeout_ms == 45 * 60_000
        assert agent.session.auto_renew is False
        assert agent.session.warning_ms == 150_000
        assert agent.session.max_duration_ms is None
        assert (agent.on_busy, agent.turn_timeout_ms) == ("merge", 60_000)

    def test_names_every_bad_field(self, tmp_path: Path) -> None:
        path = tmp_path / "agents.toml"
        path.write_text(
            AGENTS.replace("= 45", "= 4").replace('"echo"', '"magic"').replace("60000", "5") + "colour = 1\n"
        )

        text = "\n".join(problems({"SESSIONS_AGENTS_FILE": str(path)}))

        for field in ("session.timeoutMinutes=4", "kind", "turnTimeoutMs", "session.colour"):
            assert f"agents[1].{field}" in text

    @pytest.mark.parametrize("config", ["delayMs = 10001", "delayMs = true", 'delayMs = "5"', "delayMS = 5"])
    def test_refuses_a_config_that_would_do_nothing(self, tmp_path: Path, config: str) -> None:
        path = tmp_path / "agents.toml"
        path.write_text(f"{AGENTS}[agents.config]\n{config}\n")

        (problem,) = problems({"SESSIONS_AGENTS_FILE": str(path)})

        assert f"agents[1].config.{config.partition(' ')[0]}" in problem

    def test_reads_every_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "agents.toml"
        path.write_text(KINDS)
        environ = {"SESSIONS_AGENTS_FILE": str(path), "LLM_KEY": "sk-hidden", "HOOK_SECRET": SECRET}

        agents = {agent.kind: agent for agent in Settings.from_env(environ).agents}

        assert agents["worker"].config == {}
        assert agents["webhook"].config == {"url": "https://agent.example.com/", "secret": SECRET}
        assert agents["webhook"].concurrency == 7
        assert agents["openai"].config["apiKey"] == "sk-hidden"
        assert "apiKeyEnv" not in agents["openai"].config

    @pytest.mark.parametrize(
        "old, new, field",
        [
            ('apiKeyEnv = "LLM_KEY"', 'apiKeyEnv = "NO_SUCH_KEY"', "config.apiKeyEnv"),
            ('apiKeyEnv = "LLM_KEY"', 'apiKeyEnv = "no name"', "config.apiKeyEnv"),
            ('apiKeyEnv = "LLM_KEY"', 'apiKeyEnv = "LLM_KEY"\napiKey = "sk-hidden"', "config.apiKeyEnv"),
            ('apiKeyEnv = "LLM_KEY"', 'apiKey = "********"', "config.apiKey"),
            ('apiKeyEnv = "LLM_KEY"', 'apiKey = "sk-hidden key"', "config.apiKey"),
            ('secretEnv = "HOOK_SECRET"', "", "config.secret"),
            ('secretEnv = "HOOK_SECRET"', 'secretEnv = "LLM_KEY"', "config.secret"),
            ("concurrency = 7", "concurrency = 0", "concurrency"),
        ],
    )
    def test_a_bad_secret_is_named_and_not_shown(
        self, tmp_path: Path, old: str, new: str, field: str
    ) -> None:
        """A webhook of a file needs one: each replica would make another, and tell nobody."""
        path = tmp_path / "agents.toml"
        path.write_text(KINDS.replace(old, new))
        environ = {"SESSIONS_AGENTS_FILE": str(path), "LLM_KEY": "sk-hidden", "HOOK_SECRET": SECRET}

        (problem,) = problems(environ)

        assert f"].{field}" in problem
        assert "sk-hidden" not in problem

    @pytest.mark.parametrize("text", ["nonsense", "agents = 3", "[[agents]]\nid = 1", "[other]\n"])
    def test_refuses_what_is_no_list_of_agents(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "agents.toml"
        path.write_text(text)

        assert problems({"SESSIONS_AGENTS_FILE": str(path)})

    def test_a_file_that_is_not_there_stops_the_start(self) -> None:
        assert "cannot be read" in problems({"SESSIONS_AGENTS_FILE": "/nowhere/agents.toml"})[0]
