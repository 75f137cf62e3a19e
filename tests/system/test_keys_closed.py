"""What keys close: addresses that others reach, pages of other origins; and nobody sees their secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessions_api.access.keyring import mint
from sessions_api.errors import SettingsError
from sessions_api.settings import Settings
from tests.support.client import eventually, problem, received
from tests.support.commands import command
from tests.support.filed import OPS, OPS_LINE, Filed, filed_service, secret_of

pytestmark = pytest.mark.timeout(120)
EVERYWHERE = ("0.0.0.0", "::", "192.0.2.1", "sessions.example")  # noqa: S104  nothing is bound to them
ENV_LINE, _ = mint("shop", ["app"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filed]:
    with filed_service(tmp_path_factory.mktemp("keys")) as filed:
        yield filed


@pytest.fixture
def filed(served: Filed) -> Iterator[Filed]:
    """Its keys are what the test before left, the operator's among them."""
    yield served
    served.leave()


class TestStart:
    def test_where_others_can_call_is_refused_without_keys(self) -> None:
        refused = command("serve", "--redis-url", "redis://127.0.0.1:1", "--host", EVERYWHERE[0])

        assert refused.returncode != 0
        assert f"HOST={EVERYWHERE[0]!r}: only a loopback address" in refused.stderr
        assert "anyone who reaches the port could read every conversation" in refused.stderr
        assert "sessions-api keys new" in refused.stderr

    @pytest.mark.parametrize("host", EVERYWHERE)
    def test_where_others_can_call_is_granted_with_keys_alone(self, host: str, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text(OPS_LINE)

        for keys in ({"SESSIONS_KEYS": ENV_LINE}, {"SESSIONS_KEYS_FILE": str(path)}):
            assert Settings.from_env({"HOST": host} | keys).host == host
        with pytest.raises(SettingsError, match="only a loopback address"):
            Settings.from_env({"HOST": host})

    def test_with_a_file_that_holds_no_key_is_refused(self, tmp_path: Path) -> None:
        """It was meant to close the service, which without keys is open to whoever is on this machine."""
        path = tmp_path / "keys"
        path.write_text("# none yet\n")

        with pytest.raises(SettingsError, match=f"SESSIONS_KEYS_FILE={path} holds no key"):
            Settings.from_env({"SESSIONS_KEYS_FILE": str(path)})

    def test_with_a_secret_for_a_hash_is_refused_and_does_not_show_it(self) -> None:
        with pytest.raises(SettingsError) as refused:
            Settings.from_env({"SESSIONS_KEYS": f"key1 shop app {secret_of(OPS)}"})

        assert "SESSIONS_KEYS, line 1: key key1: a secret is in the place of its hash" in str(refused.value)
        assert secret_of(OPS) not in str(refused.value)


class TestPages:
    """With keys a browser's request is known by its key or token, wherever the service is called."""

    @pytest.mark.parametrize("host", ["sessions.example", "10.0.0.7:3000", "localhost"])
    def test_any_name_is_answered_and_opens_nothing_without_a_key(self, filed: Filed, host: str) -> None:
        """So a stranger's name that resolves to this machine is of no use to the stranger."""
        assert filed.caller(OPS).call("GET", "", headers={"Host": host}).status_code == 200
        problem(filed.caller().call("GET", "", headers={"Host": host}), 401, "UNAUTHENTICATED")

    @pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null"])
    def test_of_other_origins_are_refused_though_they_show_a_key(self, filed: Filed, origin: str) -> None:
        reply = filed.caller(OPS).call("GET", "", headers={"Origin": origin})

        problem(reply, 403, "FORBIDDEN")
        assert not [name for name in reply.headers if name.startswith("access-control")]

    def test_of_its_own_origin_are_answered(self, filed: Filed) -> None:
        ours = {"Origin": "https://sessions.example", "Host": "sessions.example"}

        assert filed.caller(OPS).call("GET", "", headers=ours).status_code == 200
        problem(filed.caller().call("GET", "", headers=ours), 401, "UNAUTHENTICATED")


class TestSecrets:
    def test_stand_in_no_log_no_metric_and_no_error(self, filed: Filed) -> None:
        """At the loudest level; whether the secret is good or not, and wherever a caller puts it."""
        line, key = mint("shop", ["app"])
        filed.write(OPS_LINE, line)
        eventually(lambda: filed.status(key) == 200)
        owner = filed.caller(key)
        session_id = owner.session()
        token = owner.token(session_id)
        wrong = [f"{key[:-1]}{'AB'[key[-1] == 'A']}", f"{token[:-9]}AAAAAAAAA"]

        told = []
        for secret in (key, token, *wrong):
            nobody = filed.caller()
            for shown in ({"X-API-KEY": secret}, {"Authorization": f"Bearer {secret}"}, {"Cookie": secret}):
                told += [
                    nobody.call("POST", path, headers=shown).text
                    for path in ("", f"/{session_id}", f"/{session_id}/messages", "/unknown")
                ]
            told.append(nobody.call("GET", "", params={"key": secret}, headers={"User-Agent": secret}).text)
            with nobody.websocket(session_id) as socket:
                socket.send(json.dumps({"type": "auth", "token": secret}))
                told.append(json.dumps(received(socket)))
        told += [filed.caller(OPS).http.get("/metrics").text, filed.service.log]

        everything = "\n".join(told)
        assert len(filed.service.log) > 1000
        for secret in (key, token, *wrong):
            assert secret_of(secret) not in everything
        assert line.rpartition(":")[2] not in everything

    def test_stand_not_in_redis(self, filed: Filed) -> None:
        """Of an access key there are the id and its last use, of a token nothing."""
        line, key = mint("shop", ["app"])
        filed.write(OPS_LINE, line)
        eventually(lambda: filed.status(key) == 200)
        owner = filed.caller(key)
        token = owner.token(owner.session())

        kept = b"".join(path.read_bytes() for path in filed.data.rglob("*") if path.is_file())

        assert b"signing" in kept
        for secret in (secret_of(key), secret_of(token), line.rpartition(":")[2]):
            assert secret.encode() not in kept
