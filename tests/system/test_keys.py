"""Access keys of a running service: changed without a restart, rotated, and seen at work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sessions_api.access.keyring import mint
from tests.support.client import INSTANT, closed, eventually, problem, received_until
from tests.support.commands import command
from tests.support.filed import OPS, OPS_LINE, Filed, filed_service, secret_of
from tests.support.service import Service

pytestmark = pytest.mark.timeout(120)
ENV_LINE, FROM_ENV = mint("shop", ["app"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filed]:
    with filed_service(tmp_path_factory.mktemp("keys")) as filed:
        yield filed


@pytest.fixture
def filed(served: Filed) -> Iterator[Filed]:
    """Its keys are what the test before left, the operator's among them."""
    yield served
    served.leave()


class TestFile:
    def test_a_key_that_is_added_opens_and_one_that_is_removed_does_not(self, filed: Filed) -> None:
        line, key = mint("shop", ["app"])
        assert filed.status(key) == 401

        filed.write(OPS_LINE, line)
        eventually(lambda: filed.status(key) == 200)
        filed.write(OPS_LINE)
        eventually(lambda: filed.status(key) == 401)

        error = problem(filed.caller(key).call("GET", ""), 401, "UNAUTHENTICATED")
        assert error["message"] == "Missing or invalid X-API-KEY header"
        assert filed.status(OPS) == 200

    def test_a_key_is_rotated_without_a_moment_in_which_none_opens(self, filed: Filed) -> None:
        """Both are the application's: each finds what the other made."""
        (old_line, old), (new_line, new) = mint("shop", ["app"]), mint("shop", ["app"])
        filed.write(OPS_LINE, old_line)
        eventually(lambda: filed.status(old) == 200)
        session_id = filed.caller(old).session()

        filed.write(OPS_LINE, old_line, new_line)
        eventually(lambda: filed.status(new) == 200)
        assert filed.caller(new).get(session_id)["sessionId"] == session_id
        assert filed.status(old) == 200
        filed.write(OPS_LINE, new_line)
        eventually(lambda: filed.status(old) == 401)

        assert filed.caller(new).get(session_id)["sessionId"] == session_id

    def test_the_streams_of_a_key_end_when_it_is_removed(self, filed: Filed) -> None:
        """Whether it was shown in a header or a frame; those of the application's other key go on."""
        (old_line, old), (new_line, new) = mint("shop", ["app"]), mint("shop", ["app"])
        filed.write(OPS_LINE, old_line, new_line)
        eventually(lambda: filed.status(old) == filed.status(new) == 200)
        before, after = filed.caller(old), filed.caller(new)
        session_id = before.session()

        with (
            before.events(session_id) as stream,
            before.websocket(session_id) as socket,
            filed.caller().websocket(session_id) as framed,
            after.websocket(session_id) as changed,
            after.events(session_id) as other,
        ):
            for each, key in ((framed, old), (changed, old)):
                each.send(json.dumps({"type": "auth", "token": key}))
                received_until(each, "ack")
            assert other.next().name == stream.next().name == "session.snapshot"
            filed.write(OPS_LINE, new_line)
            last = stream.rest()[-1]
            codes = [closed(each)[0] for each in (socket, framed, changed)]
            after.say(session_id, "go on")
            other.until("message.created")

        assert (last.name, last.data["data"]) == ("closing", {"code": 4401, "retry": False})
        assert codes == [4401] * 3

    def test_a_key_that_gets_other_scopes_may_what_they_say(self, filed: Filed) -> None:
        line, key = mint("shop", ["app"])
        filed.write(OPS_LINE, line)
        eventually(lambda: filed.status(key) == 200)

        filed.write(
            OPS_LINE, line.replace(" app sha256:", f" agent:{'a' * 8}-aaaa-4aaa-8aaa-{'a' * 12} sha256:")
        )

        eventually(lambda: filed.status(key) == 403)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda filed, line: filed.write(OPS_LINE, line, "half a line"),
            lambda filed, line: filed.write(line, line),
            lambda filed, line: (filed.write(line), filed.chmod(0o666)),
        ],
        ids=["a bad line", "a key twice", "a file that everybody may write"],
    )
    def test_what_is_wrong_changes_nothing_and_is_logged(
        self, filed: Filed, spoil: Callable[[Filed, str], object]
    ) -> None:
        line, key = mint("shop", ["app"])
        before = len(filed.logged("keys_not_reloaded"))

        spoil(filed, line)
        eventually(lambda: len(filed.logged("keys_not_reloaded")) > before)

        assert (filed.status(OPS), filed.status(key)) == (200, 401)

    @pytest.mark.parametrize("lines", [(), ("# nobody any more",)])
    def test_that_has_lost_its_last_key_lets_nobody_in(self, filed: Filed, lines: tuple[str, ...]) -> None:
        """Though a service that never had a key would be open to this machine."""
        filed.write(*lines)
        eventually(lambda: filed.status(OPS) == 401)

        problem(filed.caller().call("GET", ""), 401, "UNAUTHENTICATED")
        with filed.caller().websocket("00000000-0000-4000-8000-000000000000") as socket:
            socket.send('{"type": "ping"}')
            assert closed(socket)[0] == 4401
        assert filed.caller().http.get("/livez").status_code == 200
        filed.write(OPS_LINE)
        eventually(lambda: filed.status(OPS) == 200)


class TestUse:
    def test_is_shown_to_the_operator_in_the_api_and_on_the_command_line(self, filed: Filed) -> None:
        """What was shown with a wrong secret is no use of the key."""
        (used_line, used), (idle_line, idle) = mint("shop", ["app"]), mint("shop", ["app"])
        ids = {"used": used.partition(".")[0], "idle": idle.partition(".")[0]}
        filed.write(OPS_LINE, used_line, idle_line)
        eventually(lambda: filed.status(used) == 200)
        assert filed.status(f"{ids['idle']}.{used.partition('.')[2]}") == 401

        def keys() -> dict[str, dict[str, Any]]:
            found = filed.caller(OPS).http.get("/api/keys").json()["keys"]
            return {key["id"]: key for key in found}

        eventually(lambda: "lastUsedAt" in keys()[ids["used"]], within_s=15)

        found = keys()
        shown = command("keys", "ls", "--url", filed.service.url, env={"SESSIONS_API_KEY": OPS})
        assert found.keys() == {OPS.partition(".")[0], *ids.values()}
        assert found[ids["idle"]] == {"id": ids["idle"], "app": "shop", "scopes": ["app"]}
        assert INSTANT.fullmatch(found[ids["used"]]["lastUsedAt"])
        rows = {row[0]: row[1:] for row in (re.split(r" {2,}", line) for line in shown.stdout.splitlines())}
        assert rows[ids["idle"]] == ["shop", "app", "-"]
        assert rows[ids["used"]][2] == found[ids["used"]]["lastUsedAt"][:19].replace("T", " ")

    def test_keys_are_listed_without_secret_or_hash(self, filed: Filed) -> None:
        line, key = mint("shop", ["app"])
        filed.write(OPS_LINE, line)
        eventually(lambda: filed.status(key) == 200)

        listed = filed.caller(OPS).http.get("/api/keys").text

        assert key.partition(".")[0] in listed
        for secret in (key, OPS):
            assert secret_of(secret) not in listed
        assert line.rpartition(":")[2] not in listed


class TestEnvironment:
    def test_has_keys_too_beside_those_of_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text(OPS_LINE)
        path.chmod(0o600)
        env = {"SESSIONS_KEYS": f"{ENV_LINE} ;  ", "SESSIONS_KEYS_FILE": str(path)}
        with Service(tmp_path / "service", env=env) as service:
            filed = Filed(service, path)
            assert (filed.status(FROM_ENV), filed.status(OPS), filed.status("")) == (200, 200, 401)

            filed.write("# gone")
            eventually(lambda: filed.status(OPS) == 401)

            assert filed.status(FROM_ENV) == 200
            filed.leave()
