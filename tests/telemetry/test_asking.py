"""When this service traces: OpenTelemetry's own variables ask for it, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sessions_api.api.middleware import Surface
from sessions_api.api.traced import Traced
from sessions_api.app import create_app
from sessions_api.errors import SettingsError
from sessions_api.settings import Settings
from tests.support.app import SESSIONS
from tests.support.commands import clean_environment
from tests.support.servers import TestServer

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
REDIS = {"REDIS_URL": "redis://127.0.0.1:1"}

# The whole service answers a message of a caller that traces; then what is loaded of OpenTelemetry is told.
# redis-py loads its metrics by itself where it finds them, and uses them only if it is told to.
SERVES = f"""
import asyncio, sys
import httpx2
import redis.asyncio
before = set(sys.modules)
from sessions_api.app import create_app
from sessions_api.domain.agents import ECHO_ID
from sessions_api.settings import Settings

async def main():
    environ = {{"REDIS_URL": sys.argv[1], "SESSIONS_DEV": "on", "LOG_LEVEL": "error"}}
    app = create_app(Settings.from_env(environ))
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:3000") as http:
            body = {{"agentId": ECHO_ID, "userId": "11111111-1111-4111-8111-111111111111"}}
            session = (await http.post("{SESSIONS}", json=body)).json()
            reply = await http.post(
                f"{SESSIONS}/{{session['sessionId']}}/messages",
                json={{"content": "hello", "transport": "http"}},
                headers={{"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}},
            )
            print(reply.json()["agentResponse"]["text"])

asyncio.run(main())
ours = ("opentelemetry", "sessions_api.telemetry.spans")
print([name for name in sys.modules if name.startswith(ours) and name not in before])
"""

# As where the extra was never installed.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
STARTS = """
sys.argv = ["sessions-api", "serve", "--redis-url", "redis://127.0.0.1:1"]
from sessions_api.cli import main
sys.exit(main())
"""
READS = """
import os
from sessions_api.settings import Settings
print(Settings.from_env(os.environ).trace_exporters)
"""


def python(program: str, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in clean_environment(env or {}).items() if "OTEL" not in name}
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env=kept | (env or {}),
    )


class TestAsking:
    @pytest.mark.parametrize(
        "environ, exporters",
        [
            ({}, ()),
            ({"OTEL_SERVICE_NAME": "chat"}, ()),
            (ENDPOINT, ("otlp",)),
            ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, ("otlp",)),
            ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
            ({"OTEL_TRACES_EXPORTER": "console"}, ("console",)),
            ({"OTEL_TRACES_EXPORTER": " OTLP, console,otlp "}, ("otlp", "console")),
            (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, ()),
            (ENDPOINT | {"OTEL_TRACES_EXPORTER": ""}, ("otlp",)),
            (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, ()),
            (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, ("otlp",)),
            (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("otlp",)),
        ],
    )
    def test_is_done_by_the_standard_variables(
        self, environ: dict[str, str], exporters: tuple[str, ...]
    ) -> None:
        assert Settings.from_env(environ).trace_exporters == exporters

    @pytest.mark.parametrize(
        "environ, named",
        [
            ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER='jaeger'"),
            (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL='grpc'"),
            (
                ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='http/json'",
            ),
        ],
    )
    def test_for_what_is_not_here_is_refused_with_what_is(self, environ: dict[str, str], named: str) -> None:
        """Spans that go to a port which does not understand them would be missed too late."""
        with pytest.raises(SettingsError) as refused:
            Settings.from_env(environ)

        [problem] = refused.value.problems
        assert problem.startswith(named)
        assert "allowed is" in problem

    @pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER"])
    def test_without_the_extra_ends_the_start_with_the_command_that_installs_it(self, name: str) -> None:
        value = {"OTEL_TRACES_EXPORTER": "otlp"}.get(name, "http://127.0.0.1:4318")

        ended = python(WITHOUT + STARTS, env={name: value})

        assert ended.returncode != 0
        assert f"{name} is set and OpenTelemetry is not installed" in ended.stderr
        assert "pip install 'sessions-api[otel]'" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_the_extra_is_what_the_tests_run_on(self) -> None:
        """A group of dependencies cannot name an extra of the same project."""
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))

        extra = set(project["project"]["optional-dependencies"]["otel"])

        assert extra <= {each for each in project["dependency-groups"]["dev"] if isinstance(each, str)}


class TestOff:
    @pytest.mark.servers("valkey")
    @pytest.mark.parametrize("front", ["", WITHOUT], ids=["installed", "not installed"])
    def test_nothing_of_opentelemetry_is_loaded(self, server: TestServer, front: str) -> None:
        done = python(front + SERVES, server.url)

        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["echo: hello", "[]"]

    def test_disabled_it_is_not_even_looked_for(self) -> None:
        """The operator's way out, should the extra be missing."""
        done = python(WITHOUT + READS, env=ENDPOINT | {"OTEL_SDK_DISABLED": "true"})

        assert done.stdout == "()\n", done.stderr

    def test_nothing_stands_around_the_application(self) -> None:
        """What uvicorn calls is Starlette's object, and that calls our one layer."""
        app = create_app(Settings.from_env(REDIS))

        assert type(app.build_middleware_stack()) is Surface

    def test_on_one_layer_does(self) -> None:
        app = create_app(Settings.from_env(REDIS | ENDPOINT))

        assert type(app.build_middleware_stack()) is Traced


def test_this_environment_asks_for_nothing() -> None:
    """Tests that start services inherit it."""
    assert not [name for name in os.environ if name.startswith("OTEL_")]
