"""deploy/compose/: the service on Sentinel and on Cluster, from the deployed scripts and users."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.deploy.compose import services
from tests.deploy.peers import Peer, Peers, running
from tests.deploy.programs import until
from tests.support.client import Api
from tests.support.ports import free_port, free_ports
from tests.support.recipes import follow
from tests.support.service import Service

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli here"),
]


def converse(api: Api, session_id: str, word: str) -> None:
    assert api.ask(session_id, word)["agentResponse"]["text"] == f"echo: {word}"


def url_of(variant: str, addresses: dict[str, str]) -> str:
    """The replicas' REDIS_URL of the compose file, with these addresses in place of its containers'."""
    url = str(services(variant)["api-1"]["environment"]["REDIS_URL"])
    for theirs, ours in addresses.items():
        assert f"{theirs}," in url or f"{theirs}/" in url or url.endswith(theirs), theirs
        url = url.replace(theirs, ours)
    return url


@contextmanager
def serving(peers: Peers, folder: Path, url: str) -> Iterator[Api]:
    """A replica of the service there, as the compose file gives it the password."""
    folder.mkdir(exist_ok=True)
    (password := folder / "redis_password").write_text(peers.password + "\n")
    env = {"REDIS_PASSWORD_FILE": str(password)}
    with Service(folder, redis_url=url, env=env) as service, closing(Api(service.url)) as api:
        yield api
    service.assert_no_bug_logged(allowed=frozenset({"redis_circuit_opened"}))


def at(peers: Peers, node: Peer, backup: Path) -> dict[str, str]:
    """The names in docs/backup.md's commands, at this server, for its operator."""
    return peers.environment(node.name) | {
        "CLI": f"{peers.folder / 'redis' / 'operator'} -p {node.port}",
        "DATA": str(peers.folder / node.name / "data"),
        "BACKUP": str(backup),
    }


def contents(api: Api, session_id: str) -> list[str]:
    return [each["content"] for each in api.history(session_id)["messages"]][::-1]


class TestSentinel:
    @pytest.fixture
    def peers(self, tmp_path_factory: pytest.TempPathFactory) -> Peers:
        return Peers(tmp_path_factory.mktemp("sentinel"))

    @pytest.fixture
    def nodes(self, peers: Peers) -> Iterator[list[Peer]]:
        """redis, redis-2 and redis-3, of which the first is the primary."""
        ports = dict(zip(("redis", "redis-2", "redis-3"), free_ports(3), strict=True))
        nodes = []
        for name, port in ports.items():
            env = dict(services("sentinel")[name]["environment"])
            assert env["REDIS_NAME"] == f"{name} 6379"
            assert env["REDIS_PRIMARY"] == "redis 6379"
            env |= {
                "REDIS_NAME": f"127.0.0.1 {port}",
                "REDIS_PRIMARY": f"127.0.0.1 {ports['redis']}",
            }
            nodes.append(Peer(peers, "start", name, port, env, "--repl-diskless-sync-delay", "0"))
        with running(nodes):
            yield nodes

    @pytest.fixture
    def sentinels(self, peers: Peers, nodes: list[Peer]) -> Iterator[list[Peer]]:
        # Sentinels ask the primary who follows it, at their start and then every ten seconds.
        until(lambda: _have_copies(nodes, 2), "both replicas follow the primary")
        sentinels = []
        names = ("sentinel-1", "sentinel-2", "sentinel-3")
        for name, port in zip(names, free_ports(3), strict=True):
            env = dict(services("sentinel")[name]["environment"])
            assert env == {"REDIS_NAME": name, "REDIS_PRIMARY": "redis 6379"}
            env = {
                "REDIS_NAME": "127.0.0.1",
                "REDIS_PRIMARY": f"127.0.0.1 {nodes[0].port}",
                "REDIS_DOWN_AFTER_MS": "1000",
            }
            sentinels.append(Peer(peers, "sentinel", name, port, env))
        with running(sentinels):
            until(lambda: all(known(each) == (2, 2) for each in sentinels), "the sentinels know each other")
            yield sentinels

    def test_outlives_its_primary_and_takes_it_back_as_a_replica(
        self, peers: Peers, nodes: list[Peer], sentinels: list[Peer], tmp_path: Path
    ) -> None:
        """Killed, another is primary, and the service goes on; what was said is there. Nobody was refused."""
        (password := tmp_path / "redis_password").write_text(peers.password + "\n")
        addresses = {f"{each.name}:26379": f"127.0.0.1:{each.port}" for each in sentinels}
        env = {"REDIS_PASSWORD_FILE": str(password)}
        until(lambda: all(node.role() for node in nodes), "every server answers")
        with (
            Service(tmp_path, redis_url=url_of("sentinel", addresses), env=env) as service,
            closing(Api(service.url)) as api,
        ):
            session_id = api.session()
            converse(api, session_id, "before")
            nodes[0].stop(signal.SIGKILL)

            until(lambda: "master" in [node.role() for node in nodes[1:]], "another is primary", within_s=40)
            until(lambda: api.call("GET", f"/{session_id}").status_code == 200, "the service is back")
            converse(api, session_id, "after")
            said = [each["content"] for each in api.history(session_id)["messages"]]
            assert said == ["echo: after", "after", "echo: before", "before"]

            nodes[0].start()
            until(lambda: nodes[0].role() == "slave", "the old one follows", within_s=40)
            nodes[0].stop()
            nodes[0].start()  # as what it is now, which it has kept, and not as what it began
            until(nodes[0].role, "it answers again")
            assert nodes[0].role() == "slave"
            converse(api, session_id, "and on")

        service.assert_no_bug_logged(allowed=frozenset({"redis_circuit_opened"}))
        assert [refused for node in nodes for refused in node.refusals()] == []
        assert peers.password not in service.log + "".join(peers.log(each.name) for each in nodes)

    def test_is_restored_from_a_backup(
        self, peers: Peers, nodes: list[Peer], sentinels: list[Peer], tmp_path: Path
    ) -> None:
        """As docs/backup.md has it, though another than the first server was primary: nothing drops it."""
        backup = tmp_path / "sessions.rdb"
        addresses = {f"{each.name}:26379": f"127.0.0.1:{each.port}" for each in sentinels}
        sentinels[0].ask("SENTINEL", "FAILOVER", "sessions", user=None)
        until(lambda: nodes[0].role() == "slave", "another is primary", within_s=40)
        until(lambda: _have_copies(nodes, 2), "both replicas follow it", within_s=40)
        [primary] = [node for node in nodes if node.role() == "master"]
        with serving(peers, tmp_path / "service", url_of("sentinel", addresses)) as api:
            session_id = api.session()
            converse(api, session_id, "before")
            follow("backup", at(peers, primary, backup))
            converse(api, session_id, "after")

            for each in (*sentinels, *nodes):
                each.stop()
            for each in (*sentinels, *nodes):
                follow("empty", at(peers, each, backup))
            follow("restore", at(peers, nodes[0], backup))
            nodes[0].start()
            follow("loaded", at(peers, nodes[0], backup))
            for each in (*nodes[1:], *sentinels):
                each.start()

            until(
                lambda: all(known(each) == (2, 2) for each in sentinels),
                "the sentinels know all",
                within_s=40,
            )
            until(lambda: _have_copies(nodes, 2), "both replicas follow the primary")
            until(lambda: api.call("GET", f"/{session_id}").status_code == 200, "the service is back")
            assert contents(api, session_id) == ["before", "echo: before"]
            converse(api, session_id, "and on")
            assert [node.role() for node in nodes] == ["master", "slave", "slave"]

    def test_a_lone_primary_stops(self, nodes: list[Peer]) -> None:
        """It may be the one that is cut off."""
        assert [setting(node, "min-replicas-to-write") for node in nodes] == ["1", "1", "1"]
        assert [setting(node, "min-replicas-max-lag") for node in nodes] == ["10", "10", "10"]


def setting(node: Peer, name: str) -> str:
    until(lambda: node.ask("PING"), "it answers")
    return str(node.ask("CONFIG", "GET", name)[1].decode())


def known(sentinel: Peer) -> tuple[int, int]:
    """How many replicas and other sentinels it knows."""
    told = sentinel.ask("SENTINEL", "MASTER", "sessions", user=None)
    if told is None:
        return 0, 0
    flat = [part.decode() for part in told]
    state = dict(zip(flat[::2], flat[1::2], strict=True))
    return int(state["num-slaves"]), int(state["num-other-sentinels"])


class TestCluster:
    @pytest.fixture
    def peers(self, tmp_path_factory: pytest.TempPathFactory) -> Peers:
        return Peers(tmp_path_factory.mktemp("cluster"))

    @pytest.fixture
    def nodes(self, peers: Peers) -> Iterator[list[Peer]]:
        """Six servers, made a cluster by the deployed script."""
        names = [name for name in services("cluster") if name.startswith("redis")]
        assert len(names) == 6
        nodes = []
        for name, port in zip(names, free_ports(6), strict=True):
            env = services("cluster")[name]["environment"]
            quick = ("--repl-diskless-sync-delay", "0", "--cluster-node-timeout", "2000")
            nodes.append(Peer(peers, "start", name, port, env, *quick))
        theirs = services("cluster")["join"]["command"]
        assert len(theirs) == len(names)
        with running(nodes):
            self.join(peers, nodes)
            until(
                lambda: all(b"cluster_state:ok" in (state(node) or b"") for node in nodes),
                "the cluster is whole",
            )
            yield nodes

    @staticmethod
    def join(peers: Peers, nodes: list[Peer]) -> None:
        joined = subprocess.run(
            [peers.folder / "redis" / "join", *(f"127.0.0.1:{node.port}" for node in nodes)],
            env=peers.environment("join"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert joined.returncode == 0, joined.stdout + joined.stderr

    def test_serves_and_outlives_a_primary(self, peers: Peers, nodes: list[Peer], tmp_path: Path) -> None:
        """Sessions on every primary; one is killed, its replica takes over. Nobody was refused anything."""
        self.join(peers, nodes)  # again: it is one already, and stays as it is
        (password := tmp_path / "redis_password").write_text(peers.password + "\n")
        url = self.url(nodes)
        until(lambda: all(node.ask("ROLE") for node in nodes), "every server answers")
        with (
            Service(tmp_path, redis_url=url, env={"REDIS_PASSWORD_FILE": str(password)}) as service,
            closing(Api(service.url)) as api,
        ):
            session_ids = [api.session() for _ in range(12)]
            for session_id in session_ids:
                converse(api, session_id, "before")
            with api.events(session_ids[0]) as stream:
                assert stream.next().name == "session.snapshot"
                api.say(session_ids[0], "live")
                stream.until("turn.completed")
            primaries = [node for node in nodes if node.role() == "master"]
            assert len(primaries) == 3
            assert all(node.ask("DBSIZE") for node in primaries)

            # A replica that has never had a copy takes over as well, with nothing in it.
            until(lambda: _have_copies(nodes, len(primaries)), "every primary has a copy")
            primaries[0].stop(signal.SIGKILL)
            others = [node for node in nodes if node is not primaries[0]]
            until(
                lambda: [node.role() for node in others].count("master") == 3,
                "a replica takes over",
                within_s=40,
            )
            for session_id in session_ids:
                until(lambda sid=session_id: _is_there(api, sid), "it is there")  # type: ignore[misc]
                assert "before" in [each["content"] for each in api.history(session_id)["messages"]]

        service.assert_no_bug_logged(allowed=frozenset({"redis_circuit_opened"}))
        assert [refused for node in others for refused in node.refusals()] == []

    def test_a_primary_without_its_replica_goes_on(self, nodes: list[Peer]) -> None:
        """One that is cut off from the majority stops by itself."""
        assert {setting(node, "min-replicas-to-write") for node in nodes} == {"0"}

    def test_moves_slots_for_its_operator(self, peers: Peers, nodes: list[Peer], tmp_path: Path) -> None:
        """At once, with the conversations that lie in them; nobody is refused what it takes."""
        source, target = nodes[:2]
        asked = f"{at(peers, source, tmp_path)['CLI']} CLUSTER MIGRATESLOTS SLOTSRANGE 0 4000 NODE "
        asked += target.ask("CLUSTER", "MYID").decode()
        with serving(peers, tmp_path / "service", self.url(nodes)) as api:
            session_ids = [api.session() for _ in range(12)]
            for session_id in session_ids:
                converse(api, session_id, "before")
            keys = target.ask("DBSIZE")

            done = subprocess.run(
                asked.split(),
                env=peers.environment(source.name),
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
            assert done.stdout.strip() == "OK"
            until(lambda: "success" in str(target.ask("CLUSTER", "GETSLOTMIGRATIONS")), "they have moved")

            assert target.ask("DBSIZE") > keys + 10
            for session_id in session_ids:
                converse(api, session_id, "after")
                assert contents(api, session_id) == ["before", "echo: before", "after", "echo: after"]
        assert [refused for node in nodes for refused in node.refusals()] == []

    def test_is_restored_from_backups_of_its_primaries(
        self, peers: Peers, nodes: list[Peer], tmp_path: Path
    ) -> None:
        """As docs/backup.md has it; each is again who it was, with its slots."""
        until(lambda: _have_copies(nodes, 3), "every primary has a copy")
        primaries = [node for node in nodes if node.role() == "master"]
        backups = {node.name: tmp_path / f"{node.name}.rdb" for node in primaries}
        with serving(peers, tmp_path / "service", self.url(nodes)) as api:
            session_ids = [api.session() for _ in range(12)]
            for session_id in session_ids:
                converse(api, session_id, "before")
            for node in primaries:
                follow("backup", at(peers, node, backups[node.name]))
            for session_id in session_ids:
                converse(api, session_id, "after")

            self.restore(peers, nodes, primaries, backups)

            for session_id in session_ids:
                until(lambda sid=session_id: _is_there(api, sid), "it is there")  # type: ignore[misc]
                assert contents(api, session_id) == ["before", "echo: before"]
                converse(api, session_id, "and on")
        assert [node for node in nodes if node.role() == "master"] == primaries

    def test_takes_a_backup_of_one_server(self, peers: Peers, nodes: list[Peer], tmp_path: Path) -> None:
        """The same in each primary, which keeps what lies in its slots."""
        until(lambda: _have_copies(nodes, 3), "every primary has a copy")
        primaries = [node for node in nodes if node.role() == "master"]
        backup = tmp_path / "sessions.rdb"
        alone = Peer(peers, "start", "alone", free_port(), {}, "--repl-diskless-sync-delay", "0")
        with running([alone]):
            until(lambda: alone.ask("PING", user="sessions"), "it answers")
            with serving(peers, tmp_path / "one", f"redis://sessions@127.0.0.1:{alone.port}/0") as api:
                session_ids = [api.session() for _ in range(12)]
                for session_id in session_ids:
                    converse(api, session_id, "before")
                follow("backup", at(peers, alone, backup))

        self.restore(peers, nodes, primaries, {node.name: backup for node in primaries})

        with serving(peers, tmp_path / "several", self.url(nodes)) as api:
            for session_id in session_ids:
                assert contents(api, session_id) == ["before", "echo: before"]
                converse(api, session_id, "and on")
        assert all(b"[" not in node.ask("CLUSTER", "NODES") for node in primaries), "no slot is under way"

    @staticmethod
    def url(nodes: Sequence[Peer]) -> str:
        addresses = {
            f"{theirs}:6379": f"127.0.0.1:{node.port}"
            for theirs, node in zip(("redis", "redis-2", "redis-3"), nodes, strict=False)
        }
        return url_of("cluster", dict(sorted(addresses.items(), reverse=True)))

    @staticmethod
    def restore(
        peers: Peers, nodes: Sequence[Peer], primaries: Sequence[Peer], backups: dict[str, Path]
    ) -> None:
        """The steps for a Cluster."""
        replicas = [node for node in nodes if node not in primaries]
        for node in (*replicas, *primaries):
            node.stop()
        for node in primaries:
            follow("restore", at(peers, node, backups[node.name]))
        for node in replicas:
            follow("forget", at(peers, node, Path("/nowhere")))
        for node in primaries:
            node.start()
        for node in primaries:
            follow("whole", at(peers, node, Path("/nowhere")))
        for node in replicas:
            node.start()
        until(lambda: _have_copies(list(nodes), len(primaries)), "every primary has a copy", within_s=40)


def state(node: Peer) -> bytes | None:
    told: bytes | None = node.ask("CLUSTER", "INFO")
    return told


def _is_there(api: Api, session_id: str) -> bool:
    """False while its shard has no primary; what else may be said of it is wrong."""
    reply = api.call("GET", f"/{session_id}")
    assert reply.status_code in {200, 503}, reply.text
    return reply.status_code == 200


def _have_copies(nodes: list[Peer], count: int) -> bool:
    """*count* replicas are connected, and have what their primaries have."""
    roles = [role for node in nodes if (role := node.ask("ROLE"))]
    offsets = sorted(role[1] for role in roles if role[0] == b"master")
    copied = sorted(role[4] for role in roles if role[0] == b"slave" and role[3] == b"connected")
    wrote = offsets if len(offsets) == count else offsets * count  # each its own primary, or all of one
    return len(copied) == count and all(has >= there for has, there in zip(copied, wrote, strict=True))
