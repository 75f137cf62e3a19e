"""The client that elizaOS publishes on npm: each of its promises resolves to what its typings say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import INSTANT, UUID
from tests.support.service import Service

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "support" / "npm" / "package.json"
INSTALL_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def client() -> Path:
    """The installed client's entry, kept in the user's cache from run to run."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("SKIPPED LOUDLY: no node and npm here, so the elizaOS client is not tested")
    wanted = PACKAGE.read_text()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sessions-api-tests" / "npm"
    entry = cache / "node_modules" / "@elizaos" / "api-client" / "dist" / "index.js"
    done = cache / "installed"
    if not (entry.exists() and done.exists() and done.read_text() == wanted):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "package.json").write_text(wanted)
        command = [
            npm,
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--no-package-lock",
            "--loglevel=error",
        ]
        installed = subprocess.run(
            command, cwd=cache, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        if installed.returncode:
            pytest.skip(f"SKIPPED LOUDLY: npm cannot install the elizaOS client: {installed.stderr[-300:]}")
        done.write_text(wanted)
    return entry


@pytest.fixture(scope="module")
def seen(client: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What every method resolved to."""
    with Service(tmp_path_factory.mktemp("elizaos")) as service:
        command = ["node", str(HERE / "elizaos_client.mjs"), str(client), service.url]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr[-3000:]
        yield json.loads(run.stdout.splitlines()[-1])
    service.assert_no_bug_logged()


pytestmark = pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)


class TestPublishedClient:
    def test_check_health(self, seen: dict[str, Any]) -> None:
        assert seen["health"]["status"] == "healthy"
        assert isinstance(seen["health"]["activeSessions"], int)
        assert INSTANT.fullmatch(seen["health"]["timestamp"])

    def test_create_session(self, seen: dict[str, Any]) -> None:
        created = seen["created"]

        assert UUID.fullmatch(created["sessionId"])
        assert created["metadata"] == {"platform": "npm"}
        assert INSTANT.fullmatch(created["createdAt"])
        assert created.keys() >= {"agentId", "userId"}

    def test_get_session(self, seen: dict[str, Any]) -> None:
        for name in ("sessionId", "agentId", "userId", "createdAt", "lastActivity", "metadata"):
            assert seen["read"][name] == seen["created"][name]

    def test_list_sessions(self, seen: dict[str, Any]) -> None:
        assert [session["sessionId"] for session in seen["listed"]["sessions"]] == [
            seen["created"]["sessionId"]
        ]
        assert seen["listed"]["total"] == 1

    @pytest.mark.parametrize(
        "call, content", [("sent", "first"), ("answered", "second"), ("attached", "fourth")]
    )
    def test_send_message(self, seen: dict[str, Any], call: str, content: str) -> None:
        reply = seen[call]

        assert reply["success"] is True
        message = reply["userMessage"]
        assert UUID.fullmatch(message["id"])
        assert (message["content"], message["authorId"]) == (content, seen["created"]["userId"])
        assert INSTANT.fullmatch(message["createdAt"])
        assert isinstance(message["metadata"], dict)
        status = reply["sessionStatus"]
        assert INSTANT.fullmatch(status["expiresAt"])
        assert isinstance(status["renewalCount"], int)
        assert (status["wasRenewed"], status["isNearExpiration"]) == (True, False)

    def test_send_message_answers_at_once(self, seen: dict[str, Any]) -> None:
        assert "agentResponse" not in seen["sent"]
        assert seen["sent"]["userMessage"]["metadata"]["source"] == "npm"

    @pytest.mark.parametrize("call, text", [("answered", "echo: second"), ("attached", "echo: fourth")])
    def test_send_message_sync_has_the_answer(self, seen: dict[str, Any], call: str, text: str) -> None:
        answer = seen[call]["agentResponse"]

        assert answer["text"] == text
        assert isinstance(answer["actions"], list)

    def test_a_stream_ends_so_that_its_promise_resolves(self, seen: dict[str, Any]) -> None:
        assert seen["streamed"] == {"success": True}

    def test_get_messages(self, seen: dict[str, Any]) -> None:
        messages = seen["messages"]["messages"]

        spoken = [message["content"] for message in messages[::-1] if not message["isAgent"]]
        assert spoken == ["first", "second", "third", "fourth"]
        assert seen["messages"]["hasMore"] is False
        for message in messages:
            assert message.keys() >= {"id", "content", "authorId", "isAgent", "createdAt", "metadata"}
            assert INSTANT.fullmatch(message["createdAt"])

    def test_get_messages_pages_by_cursor_date_and_text(self, seen: dict[str, Any]) -> None:
        everything = [message["cursor"] for message in seen["messages"]["messages"]]
        pivot = everything[4]

        assert [m["cursor"] for m in seen["before"]["messages"]] == everything[5:7]
        assert [m["cursor"] for m in seen["after"]["messages"]] == everything[2:4]
        for name in ("beforeDate", "beforeText"):
            assert [m["cursor"] for m in seen[name]["messages"]] == everything[5:], name
        assert all(m["cursor"] > pivot for m in seen["afterDate"]["messages"])

    def test_delete_session(self, seen: dict[str, Any]) -> None:
        assert seen["deleted"] == {"success": True}

    @pytest.mark.parametrize(
        "call, status, code",
        [
            ("unknownSession", 404, "SESSION_NOT_FOUND"),
            ("unknownAgent", 404, "AGENT_NOT_FOUND"),
            ("tooLong", 400, "VALIDATION_ERROR"),
            ("afterDelete", 404, "SESSION_NOT_FOUND"),
        ],
    )
    def test_errors_have_code_status_and_message(
        self, seen: dict[str, Any], call: str, status: int, code: str
    ) -> None:
        error = seen[call]

        assert (error["name"], error["status"], error["code"]) == ("ApiError", status, code)
        assert error["message"]
        assert error["message"] != "Unknown error"
