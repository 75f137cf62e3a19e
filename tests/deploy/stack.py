"""All of deploy/ at once, without containers: Redis, three replicas, both balancers, Prometheus."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import httpx2

from tests.deploy.deployed import DeployedRedis
from tests.deploy.programs import HAProxy, Nginx, Prometheus, until
from tests.support.client import some_id
from tests.support.ports import free_ports
from tests.support.servers import binaries
from tests.support.service import Service

REPLICAS: Final = 3
SLOW_ECHO: Final = "5100e000-0000-4000-8000-0000000000aa"
SETTINGS: Final = {
    "SESSIONS_ENV": "test",
    "SESSION_MIN_TIMEOUT_MINUTES": "0.005",
    "SESSIONS_DRAIN_SECONDS": "5",
    # As in docker-compose.yml, of which the address here is the balancers'.
    "SESSIONS_TRUSTED_PROXIES": "127.0.0.1",
    # As much as the tests need, and one back in 86 s: what is left tells whose requests were counted.
    "SESSIONS_LIMIT_CREATES_IP": "1000/86400",
}
_SLOW: Final = f"""[[agents]]
id = "{SLOW_ECHO}"
name = "Slow"
kind = "echo"
[agents.config]
delayMs = 300
"""


class Stack:
    """From entering to leaving. Replicas may be stopped and started again; they keep their ports."""

    def __init__(self, folder: Path) -> None:
        agents = folder / "agents.toml"
        agents.write_text(_SLOW)
        self._stack = ExitStack()
        self._folder = folder
        self.redis = DeployedRedis(binaries()["valkey"], folder / "redis")
        self.metrics_ports = free_ports(REPLICAS)
        self.replicas = [
            Service(
                folder / f"api-{number}",
                redis_url=self.redis.url,
                env=SETTINGS | {"SESSIONS_METRICS_PORT": str(port), "SESSIONS_AGENTS_FILE": str(agents)},
            )
            for number, port in enumerate(self.metrics_ports, start=1)
        ]

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.enter_context(self.redis)
            for replica in self.replicas:
                replica.start(until_ready=False)
                stack.callback(replica.stop)
            for replica in self.replicas:
                replica.wait_until_ready()
            self.addresses = [f"127.0.0.1:{replica.port}" for replica in self.replicas]
            self.haproxy = stack.enter_context(HAProxy(self._folder / "haproxy", self.addresses))
            self.nginx = stack.enter_context(Nginx(self._folder / "nginx", self.addresses))
            targets = {
                f"api-{number}:9100": f"127.0.0.1:{port}"
                for number, port in enumerate(self.metrics_ports, start=1)
            } | {"balancer:8404": f"127.0.0.1:{self.haproxy.operators}"}
            self.prometheus = stack.enter_context(Prometheus(self._folder / "prometheus", targets))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def balancer(self, name: str) -> HAProxy | Nginx:
        found: HAProxy | Nginx = getattr(self, name)
        return found

    def followers(self, number: int) -> int:
        """How many follow a session through this replica."""
        url = f"http://127.0.0.1:{self.metrics_ports[number]}/metrics"
        text = httpx2.get(url, timeout=5, trust_env=False).text
        return int(sum(map(float, re.findall(r"^sessions_followers\{[^}]*\} (\S+)", text, re.MULTILINE))))

    def bring_back(self, number: int) -> None:
        """Start a replica again, and wait until the balancers know."""
        self.replicas[number].start()
        until(lambda: self.haproxy.ready_replicas() == REPLICAS, "HAProxy finds every replica ready")


def client_from(address: str, url: str) -> httpx2.Client:
    """A client that comes from another address of this machine's own network, 127.0.0.0/8."""
    return httpx2.Client(
        base_url=url, transport=httpx2.HTTPTransport(local_address=address), timeout=20, trust_env=False
    )


def a_user() -> dict[str, str]:
    return {"agentId": SLOW_ECHO, "userId": some_id()}
