"""docker-compose.yml and its variants: valid, of what we have, and no container with more than it needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml

from sessions_api.access import keyring
from sessions_api.domain.ids import AppName
from sessions_api.settings import VARIABLES, Settings
from sessions_api.store.keys import Keyspace
from tests.deploy.compose import VARIANTS, compose, health_command, image, image_environment, services
from tests.deploy.container import Container, image_of_the_service, why_not
from tests.deploy.deployed import CHECKOUT, DEPLOY
from tests.deploy.programs import checked, edited, missing
from tests.support.client import BASE, eventually, some_id
from tests.support.ports import free_port
from tests.support.servers import binaries

OS = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
PASSWORD = "5f4dcc3b5aa765d61d8327deb882cf99"
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=[name or "one-redis" for name in VARIANTS])
each_service = pytest.mark.parametrize(
    "service",
    [
        pytest.param(service, id=f"{variant or 'one-redis'}-{name}")
        for variant in VARIANTS
        for name, service in sorted(services(variant).items())
        if not variant or service != services().get(name)
    ],
)


def apis(variant: str = "") -> list[dict[str, Any]]:
    found = [service for name, service in services(variant).items() if name.startswith("api-")]
    assert len(found) == 3
    return found


def of_the_store(variant: str) -> dict[str, dict[str, Any]]:
    """The containers that run a server of Redis, a sentinel, or set them up."""
    return {name: each for name, each in services(variant).items() if each["image"].startswith("valkey/")}


def assert_valid(file: Path) -> None:
    checking = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*checking, file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


class TestTheFile:
    @each_variant
    def test_is_valid(self, variant: str, tmp_path: Path) -> None:
        """By the JSON schema of the compose specification."""
        file = CHECKOUT / "docker-compose.yml"
        if variant:  # as it is once it is laid over the other
            file = tmp_path / "docker-compose.yml"
            file.write_text(yaml.safe_dump(compose(variant)))

        assert_valid(file)

    @each_variant
    def test_names_only_real_settings(self, variant: str) -> None:
        """Each variable that our image is given is one of the service's, or Python's own."""
        for api in apis(variant):
            given = api["environment"].keys() | image_environment().keys()
            assert given <= {*VARIABLES, "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}

    @each_variant
    def test_has_replicas_that_are_the_same(self, variant: str) -> None:
        first, *others = ({**api, "build": None} for api in apis(variant))

        assert others == [first, first]

    @each_variant
    def test_leads_to_what_is_there(self, variant: str) -> None:
        """Names of containers in addresses, and what waits for what, are containers of the same file."""
        there = services(variant).keys()
        [url] = {api["environment"]["REDIS_URL"] for api in apis(variant)}
        hosts = re.findall(r"([a-z0-9-]+):(?:26379|6379)", url)

        assert hosts
        assert set(hosts) <= there
        assert not urlsplit(url).password
        for each in services(variant).values():
            assert set(each.get("depends_on", ())) <= there
            assert set(each["networks"]) <= compose(variant)["networks"].keys()

    def test_believes_the_balancer_and_a_proxy_before_it(self) -> None:
        """By its own addresses, which nobody else is given. From the gateway this machine's proxy comes, and
        nobody else while ports are open to this machine alone.
        """
        [trusted] = {api["environment"]["SESSIONS_TRUSTED_PROXIES"] for api in apis()}
        balancers = services()["balancer"]["networks"]
        networks = {name: compose()["networks"][name]["ipam"]["config"][0] for name in balancers}
        gateway = networks["outside"]["gateway"]

        assert trusted.split(",") == [*(each["ipv4_address"] for each in balancers.values()), gateway]
        assert services()["balancer"]["ports"] == ["127.0.0.1:3000:3000"]
        for name, network in networks.items():
            others = IPv4Network(network["ip_range"])
            fixed = {balancers[name]["ipv4_address"], network["gateway"]}
            assert others.subnet_of(IPv4Network(network["subnet"]))
            assert len(fixed) == 2
            assert not [each for each in fixed if IPv4Address(each) in others]

    @each_variant
    def test_mounts_what_is_here(self, variant: str) -> None:
        volumes = [each for service in services(variant).values() for each in service.get("volumes", ())]

        for volume in volumes:
            source = volume.split(":")[0]
            assert source in compose(variant)["volumes"] or (CHECKOUT / source).exists(), source

    @each_variant
    def test_holds_no_secret(self, variant: str) -> None:
        """They are files that git does not take and no image is built with."""
        files = [Path(secret["file"]) for secret in compose(variant)["secrets"].values()]
        assert {path.parent for path in files} == {Path("deploy/secrets")}
        assert "/secrets/" in (DEPLOY / ".gitignore").read_text().splitlines()

        used = [secret for each in services(variant).values() for secret in each.get("secrets", ())]
        assert set(used) == compose(variant)["secrets"].keys()

    def test_grants_the_time_that_the_service_takes_to_end(self) -> None:
        """SIGKILL comes after the drain and what uvicorn adds to it."""
        [granted] = {api["stop_grace_period"] for api in apis()}

        assert int(granted.removesuffix("s")) > Settings().drain_seconds + 5

    @each_variant
    def test_shows_the_store_to_the_service_alone(self, variant: str) -> None:
        """Its network has no way out, and nobody else is in it."""
        assert compose(variant)["networks"]["storage"]["internal"] is True
        inside = {name for name, each in services(variant).items() if "storage" in each["networks"]}
        assert inside == of_the_store(variant).keys() | {"api-1", "api-2", "api-3"}
        for each in of_the_store(variant).values():
            assert set(each["networks"]) == {"storage"}
            assert "ports" not in each

    def test_shows_the_operators_pages_to_nobody_outside(self) -> None:
        """Metrics of replicas, the balancer's own port and Prometheus are published nowhere."""
        published = {name: each["ports"] for name, each in services().items() if "ports" in each}

        assert published == {"balancer": ["127.0.0.1:3000:3000"], "grafana": ["127.0.0.1:3001:3000"]}


class TestHttps:
    """The lines for it that stand as comments, here and in haproxy.cfg, are of one file and one port."""

    LINES: ClassVar = {
        '    ports: ["127.0.0.1:3000:3000"]\n': "",
        "    #ports: ": "    ports: ",
        "    #secrets: ": "    secrets: ",
        "    #group_add: ": "    group_add: ",
        "  #certificate.pem:\n  #  file: ": "  certificate.pem:\n    file: ",
        ",172.29.65.1\n": "\n",
    }

    def test_is_of_what_the_balancer_is_given(self, tmp_path: Path) -> None:
        file = tmp_path / "docker-compose.yml"
        file.write_text(edited((CHECKOUT / "docker-compose.yml").read_text(), self.LINES))
        balancer, secrets = (yaml.safe_load(file.read_text())[name] for name in ("services", "secrets"))
        balancer = balancer["balancer"]
        haproxy = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
        [[port, path]] = re.findall(r"#bind :(\d+) ssl crt (\S+) ", haproxy)

        assert_valid(file)
        assert balancer["ports"] == [f"443:{port}"]
        assert [f"/run/secrets/{name}" for name in balancer["secrets"]] == [path]
        assert [secrets[name]["file"] for name in balancer["secrets"]] == ["deploy/secrets/certificate.pem"]
        assert balancer["group_add"] == services()["redis"]["group_add"]  # may read the secrets


class TestTheReadme:
    def test_has_each_variant_meant_by_every_later_command(self) -> None:
        """A command that knows of one file would put the one Redis in the place of the others."""
        heads = "".join((DEPLOY / "compose" / f"{name}.yml").read_text() for name in filter(None, VARIANTS))
        for text in ((DEPLOY / "README.md").read_text(), heads):
            named = set(re.findall(r"COMPOSE_FILE=(\S+) >> \.env", text))
            assert named == {
                f"docker-compose.yml:deploy/compose/{name}.yml" for name in filter(None, VARIANTS)
            }
            assert not re.search(r"docker compose (-f|--file)", text)

    def test_has_the_tag_of_this_release(self) -> None:
        """The image of the release before is still there to go back to, and a cluster pulls the new one."""
        release = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
        said = re.findall(r"sessions-api:([\w.]+)", (DEPLOY / "README.md").read_text())
        kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())

        assert {api["image"] for api in apis()} == {f"sessions-api:{release}"}
        assert kustomization["images"] == [{"name": "sessions-api", "newTag": release}]
        assert set(said) == {release}

    def test_signals_from_within(self) -> None:
        """A signal from outside makes a stopped container of it to Docker, who starts it no more."""
        text = (DEPLOY / "README.md").read_text()

        assert not re.search(r"^ *docker compose kill", text, re.MULTILINE)
        signalled = re.findall(r"docker compose exec (\w+) kill -(\w+) 1", text)
        assert signalled == [("balancer", "USR2"), ("prometheus", "HUP")]

    def test_says_which_programs_are_the_tests_and_which_the_images(self) -> None:
        """The second column has the images' versions."""
        text = (DEPLOY / "README.md").read_text()
        rows = re.findall(r"^\| (\w+) \| ([\d.]+|none) \| (.+) \|$", text, re.MULTILINE)
        said = {name.lower(): version for name, version, _ in rows}
        images = " ".join(each["image"] for each in services().values())

        assert said == dict(re.findall(r"(?<![\w-])([a-z]+):v?([\d.]+)", images)) | {"nginx": "none"}

    @pytest.mark.skipif("bookworm" not in OS, reason="other versions than Debian 12 has")
    @pytest.mark.parametrize(
        "program, told", [("haproxy", "-v"), ("nginx", "-v"), ("prometheus", "--version")]
    )
    def test_says_what_the_tests_ran(self, program: str, told: str) -> None:
        if missing(program):
            pytest.skip(missing(program))
        text = (DEPLOY / "README.md").read_text()
        [said] = re.findall(rf"^\| {program} \| \S+ \| ([\d.]+)", text, re.MULTILINE | re.IGNORECASE)
        ran = checked(program, told)

        assert re.search(rf"(version |/){re.escape(said)}\.", ran.stdout + ran.stderr)

    def test_says_how_many_sessions_a_gigabyte_holds(self) -> None:
        """To a tenth, by the published figure."""
        page = (CHECKOUT / "docs" / "operations.md").read_text()
        [each] = re.findall(r"^\| a live session, .+? \| ([\d,]+) B \|", page, re.MULTILINE)
        [count] = re.findall(r"about ([\d,]+) idle sessions", (DEPLOY / "README.md").read_text())

        assert int(count.replace(",", "")) == pytest.approx(2**30 / int(each.replace(",", "")), rel=0.1)


@each_service
class TestEachContainer:
    def test_cannot_change_itself(self, service: dict[str, Any]) -> None:
        """Its root is read-only; what it must write is a tmpfs that runs nothing, or a volume."""
        assert service["read_only"] is True
        assert [each.partition(":")[0] for each in service["tmpfs"]] == ["/tmp"]
        assert all({"noexec", "nosuid", "nodev"} <= set(each.split(",")) for each in service["tmpfs"])
        assert [
            each for each in service.get("volumes", ()) if each[0] == "." and not each.endswith(":ro")
        ] == []

    def test_has_no_privilege(self, service: dict[str, Any]) -> None:
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"].split(":")[0] not in {"", "0", "root"}
        assert service.keys().isdisjoint({"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"})
        assert "docker.sock" not in str(service)

    def test_is_bounded(self, service: dict[str, Any]) -> None:
        assert {"pids_limit", "mem_limit", "cpus"} <= service.keys()

    def test_is_of_an_image_that_does_not_move(self, service: dict[str, Any]) -> None:
        """A version, by its tag."""
        assert re.search(r":v?\d+\.\d+", service["image"])

    def test_says_how_it_is(self, service: dict[str, Any]) -> None:
        """A health check of its own, or the image's; what runs once has its exit status."""
        is_ours = service["image"].startswith("sessions-api:") and "HEALTHCHECK" in image()

        assert "healthcheck" in service or is_ours or service["restart"] == "on-failure"

    def test_is_reached_from_this_machine_alone(self, service: dict[str, Any]) -> None:
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


# ---------------------------------------------------------------- the containers, as near as we get to them


def redis_here(folder: Path, port: int) -> Container:
    return Container(
        services()["redis"],
        folder,
        secrets={"redis_password": PASSWORD + "\n"},
        environment={},
        told=["--port", str(port), "--bind", "127.0.0.1"],
        programs={"valkey-server": binaries()["valkey"]},
    )


def api_here(folder: Path, port: int, redis_port: int, keys: str) -> Container:
    service: dict[str, Any] = dict(services()["api-1"])
    service["entrypoint"], service["command"] = json.loads(image()["ENTRYPOINT"]), json.loads(image()["CMD"])
    url = service["environment"]["REDIS_URL"]
    assert "@redis:6379/" in url
    binds, paths = image_of_the_service()
    command = folder.with_name("sessions-api")
    command.write_text(f'#!/bin/sh\nexec {paths["PYTHON"]} -m sessions_api "$@"\n')
    command.chmod(0o755)
    image_has = {name: value for name, value in image_environment().items() if name != "PATH"}
    here = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "SESSIONS_METRICS_PORT": str(free_port()),
        "REDIS_URL": url.replace("@redis:6379/", f"@127.0.0.1:{redis_port}/"),
    }
    return Container(
        service,
        folder,
        secrets={"redis_password": PASSWORD + "\n", "access_keys": keys},
        environment=image_has | service["environment"] | paths | here,
        programs={"sessions-api": command},
        binds=binds,
    )


@contextmanager
def running(container: Container, is_ready: Any) -> Iterator[Container]:
    """*container* once it is ready; stopped, and in order, at the end."""
    with container:
        eventually(lambda: not container.is_running or is_ready(), within_s=30)
        assert container.is_running, container.log
        yield container
        assert container.stop() == 0, container.log


def check_of_redis(folder: Path, port: int) -> int:
    """The status of its health check, with the client that is here in place of the image's."""
    test = services()["redis"]["healthcheck"]["test"][1].replace("$$", "$")
    here = {
        "/run/secrets": str(folder),
        "VALKEYCLI_AUTH": "REDISCLI_AUTH",
        "valkey-cli": f"redis-cli -p {port}",
    }
    for theirs, ours in here.items():
        assert theirs in test
        test = test.replace(theirs, ours)
    return subprocess.run(["sh", "-c", test], capture_output=True, check=False).returncode


def check_of_api(port: int) -> int:
    """The status of the image's health check."""
    words = [sys.executable, *health_command()[1:]]
    return subprocess.run(words, env={"PORT": str(port)}, capture_output=True, check=False).returncode


@pytest.mark.timeout(180)
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli here, which asks Redis's health")
def test_the_containers_work_together(tmp_path: Path) -> None:
    """Read-only, as nobody, without a capability: both start, are healthy, serve, keep and end in order."""
    redis_port, port = free_port(), free_port()
    line, key = keyring.mint(AppName("shop"), ["admin"])
    api_url = f"http://127.0.0.1:{port}"
    redis = redis_here(tmp_path / "redis", redis_port)
    assert check_of_redis(tmp_path / "redis", redis_port) != 0
    assert check_of_api(port) != 0
    with (
        running(redis, lambda: check_of_redis(tmp_path / "redis", redis_port) == 0),
        running(api_here(tmp_path / "api", port, redis_port, line), lambda: check_of_api(port) == 0) as api,
        httpx2.Client(base_url=api_url, headers={"X-API-KEY": key}, trust_env=False) as client,
    ):
        agent_id = some_id()
        client.put(f"/api/agents/{agent_id}", json={"name": "Echo", "kind": "echo"}).raise_for_status()
        created = client.post(BASE, json={"agentId": agent_id, "userId": some_id()}).raise_for_status().json()
        said = {"content": "hello", "transport": "http"}
        answered = client.post(f"{BASE}/{created['sessionId']}/messages", json=said).raise_for_status().json()
        refused = httpx2.get(f"{api_url}{BASE}/{created['sessionId']}", trust_env=False)

    assert answered["agentResponse"]["text"] == "echo: hello"
    assert refused.status_code == 401
    assert "Traceback" not in api.log
    records = [json.loads(line) for line in api.log.splitlines() if line.startswith("{")]
    assert records
    assert not [record for record in records if record["level"] in {"error", "critical"}]
    assert PASSWORD not in api.log + redis.log
    data = (tmp_path / "redis" / "redis-data").rglob("*.aof")
    assert any(Keyspace().meta in path.read_bytes() for path in data)


def test_the_service_may_answer_strangers_only_with_keys(tmp_path: Path) -> None:
    """The image listens on every address; a start without a key is refused, with the way to make one."""
    keys = tmp_path / "access_keys"
    keys.write_text(keyring.mint(AppName("shop"), ["app"])[0])
    keys.chmod(0o600)
    host = {"HOST": image_environment()["HOST"], "REDIS_URL": "redis://redis"}

    assert Settings.from_env(host | {"SESSIONS_KEYS_FILE": str(keys)}).host == "0.0.0.0"  # noqa: S104
    assert image()["CMD"] == '["serve"]'
    told = subprocess.run(
        [sys.executable, "-m", "sessions_api", "serve"],
        env=host | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert "sessions-api keys new" in told.stderr
