"""The settings themselves: field by field the environment variable of the name in capitals."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from sessions_api.access.keyring import Keyring
from sessions_api.api.gate import Policies
from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.ids import LOCAL_APP, AppName
from sessions_api.domain.limits import parse_limit
from sessions_api.domain.timeouts import MINUTE_MS, TimeoutConfig
from sessions_api.wire.timeouts import TimeoutBounds

Switch = Literal["on", "off"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_LOOPBACK: Final = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
TEST_MINIMUM_MINUTES: Final = 0.001
"""Below this a session ends before its creator hears of it."""


def _limit(description: str) -> Any:
    """A limit on how often, as ``COUNT/SECONDS``, or ``off``."""
    return Meta(description=description, extra={"is_limit": True})


def _minutes(low: float, high: float, description: str) -> Any:
    """Minutes, fractions allowed; *low* holds in production, ``SESSIONS_ENV=test`` loosens it."""
    return Meta(ge=low, le=high, description=description, extra={"test_ge": TEST_MINIMUM_MINUTES})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator chose; field by field the environment variable of the name in capitals."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 3000
    redis_url: Annotated[
        str,
        Meta(
            description="redis://, rediss://, unix://, redis+sentinel://… or redis+cluster://…; "
            "`dev` brings its own server without it"
        ),
    ] = ""
    redis_password_file: Annotated[
        str, Meta(description="file with the password of the user in REDIS_URL")
    ] = ""
    sessions_data_dir: Annotated[
        str, Meta(min_length=1, description="folder of the embedded server's data")
    ] = ".data"
    sessions_key_prefix: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_.:-]{0,32}$", description="what every key in Redis starts with"),
    ] = "sa:"
    sessions_env: Annotated[
        Literal["production", "development", "test"],
        Meta(description="`test` allows timeouts of seconds"),
    ] = "production"
    sessions_dev: Annotated[
        Switch,
        Meta(description="Echo, the page /chat, no limits by address; `sessions-api dev` sets it"),
    ] = "off"
    sessions_agents_file: Annotated[str, Meta(description="TOML file of agent definitions")] = ""
    sessions_keeper: Annotated[
        Switch, Meta(description="whether this replica takes its share of warnings and expirations")
    ] = "on"
    sessions_dispatcher: Annotated[
        Switch, Meta(description="whether this replica runs the built-in kinds of agents")
    ] = "on"
    sessions_dispatcher_turns: Annotated[
        int, Meta(ge=1, le=10_000, description="turns that this replica's built-in agents run at once")
    ] = 256
    sessions_outgoing_allow: Annotated[
        str,
        Meta(description="private networks that agents' endpoints may be in: `10.1.0.0/16,192.168.7.20`"),
    ] = ""
    sessions_workers: Annotated[
        int, Meta(ge=1, le=256, description="processes of `serve` that share the port")
    ] = 1
    sessions_metrics_port: Annotated[
        int, Meta(ge=0, le=65535, description="port of /metrics alone; 0 leaves it on PORT")
    ] = 0
    sessions_keys: Annotated[
        str, Meta(description="access keys, as `sessions-api keys new` prints them, with `;` between")
    ] = ""
    sessions_keys_file: Annotated[
        str, Meta(description="file of access keys, one a line; read again when it changes")
    ] = ""
    sessions_cors_origins: Annotated[
        str, Meta(description="pages that may call from browsers: `https://shop.example`")
    ] = ""
    sessions_trusted_proxies: Annotated[
        str, Meta(description="networks whose X-Forwarded-For is believed: `10.0.0.0/8,127.0.0.1`")
    ] = ""
    sessions_limit_creates_ip: Annotated[
        str, _limit("sessions created from one address, by callers without an app key")
    ] = "10/60"
    sessions_limit_creates_key: Annotated[str, _limit("sessions created with one key")] = "100/1"
    sessions_limit_messages_session: Annotated[str, _limit("messages to one session")] = "off"
    sessions_limit_messages_session_ip: Annotated[
        str, _limit("messages to one session from one address, by callers without an app key")
    ] = "100/60"
    sessions_limit_messages_user: Annotated[str, _limit("messages to all sessions of one user")] = "off"
    sessions_limit_messages_agent: Annotated[str, _limit("messages to all sessions of one agent")] = "off"
    sessions_limit_messages_key: Annotated[str, _limit("messages sent with one key")] = "1000/1"
    sessions_limit_requests_key: Annotated[
        str, _limit("requests of any kind with one key, to one process")
    ] = "2000/1"
    sessions_limit_requests_ip: Annotated[
        str, _limit("requests of any kind without a key from one address, to one process")
    ] = "500/1"
    sessions_limits_without_redis: Annotated[
        Literal["closed", "local"],
        Meta(description="limits that cannot be counted refuse, or count in each process"),
    ] = "closed"
    sessions_drain_seconds: Annotated[
        int, Meta(ge=0, le=300, description="how long requests may finish after SIGTERM")
    ] = 20
    sessions_redis_deadline_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="how long a request waits for Redis, through repeats")
    ] = 2500
    sessions_durability: Annotated[
        Literal["primary", "replicated"],
        Meta(description="who must have a write before it is answered: Redis's primary, or replicas too"),
    ] = "primary"
    sessions_redis_replicas: Annotated[
        int, Meta(ge=1, le=10, description="how many replicas, with SESSIONS_DURABILITY=replicated")
    ] = 1
    sessions_max_followers: Annotated[
        int, Meta(ge=1, le=1_000_000, description="live connections of one process")
    ] = 10_000
    sessions_max_followers_per_session: Annotated[
        int, Meta(ge=1, le=100_000, description="live connections of one session in one process")
    ] = 100
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        Meta(description="the least that is logged"),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="`auto` is `console` on a terminal, else `json`"),
    ] = "auto"
    session_default_timeout_minutes: Annotated[
        float, _minutes(1, 10_080, "idle time after which a session ends")
    ] = 30.0
    session_min_timeout_minutes: Annotated[
        float, _minutes(1, 60, "the shortest timeout a caller may choose")
    ] = 5.0
    session_max_timeout_minutes: Annotated[
        float, _minutes(1, 10_080, "the longest timeout a caller may choose")
    ] = 1440.0
    session_auto_renew: Annotated[Switch, Meta(description="whether activity renews a session")] = "on"
    session_max_duration_minutes: Annotated[
        float, _minutes(1, 20_160, "age that no session outlives, whatever renews it")
    ] = 720.0
    session_warning_threshold_minutes: Annotated[
        float, _minutes(1, 60, "how long before its end a session is near expiration")
    ] = 5.0
    session_retention_minutes: Annotated[
        float, _minutes(5, 43_200, "how long an ended session's history stays readable")
    ] = 60.0
    session_max_content_chars: Annotated[
        int, Meta(ge=1, le=100_000, description="longest message, in UTF-16 units")
    ] = 4000
    session_max_open_per_user: Annotated[
        int, Meta(ge=1, le=1_000_000, description="live sessions of one user")
    ] = 1000
    agents: tuple[AgentDefinition, ...] = ()
    """Read from SESSIONS_AGENTS_FILE; with ``sessions_dev`` also Echo."""
    ignored: tuple[str, ...] = ()
    """Variables that are set and change nothing here; the start warns of them."""
    trace_exporters: tuple[str, ...] = ()
    """Read from OpenTelemetry's own variables; none: nothing is traced."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check everything.

        Raises:
            SettingsError: lists every problem, not only the first.
        """
        from sessions_api.settings.reader import Reader  # noqa: PLC0415  which makes what is described here

        return Reader(environ).settings()

    @property
    def data_dir(self) -> Path:
        return Path(self.sessions_data_dir)

    @property
    def drain_seconds(self) -> int:
        return self.sessions_drain_seconds

    def keyring(self) -> Keyring:
        """A fresh ring, to be loaded, of the access keys."""
        path = Path(self.sessions_keys_file) if self.sessions_keys_file else None
        return Keyring(text=self.sessions_keys, path=path)

    @property
    def trusted_proxies(self) -> tuple[Network, ...]:
        return networks_of(self.sessions_trusted_proxies)

    @property
    def policies(self) -> Policies:
        """The limits on how often."""
        names = Policies.__struct_fields__
        return Policies(**{name: parse_limit(getattr(self, f"sessions_limit_{name}")) for name in names})

    @property
    def cors_origins(self) -> frozenset[bytes]:
        return frozenset(origin.encode() for origin in words_of(self.sessions_cors_origins))

    @property
    def is_dev(self) -> bool:
        return self.sessions_dev == "on"

    @property
    def outgoing_allow(self) -> tuple[Network, ...]:
        """Private networks that requests to agents may go to; in `dev` this machine is one."""
        return (*networks_of(self.sessions_outgoing_allow), *(_LOOPBACK if self.is_dev else ()))

    @property
    def awaited_replicas(self) -> int:
        """Of Redis's own; 0: its primary's answer is enough."""
        return self.sessions_redis_replicas if self.sessions_durability == "replicated" else 0

    @property
    def runs_keeper(self) -> bool:
        return self.sessions_keeper == "on"

    @property
    def runs_dispatcher(self) -> bool:
        return self.sessions_dispatcher == "on"

    @property
    def app(self) -> AppName:
        """The application every caller belongs to while no key is configured."""
        return LOCAL_APP

    @property
    def bounds(self) -> TimeoutBounds:
        return TimeoutBounds(_ms(self.session_min_timeout_minutes), _ms(self.session_max_timeout_minutes))

    @property
    def default_config(self) -> TimeoutConfig:
        """The lowest of the three tiers."""
        return TimeoutConfig(
            _ms(self.session_default_timeout_minutes),
            self.session_auto_renew == "on",
            _ms(self.session_max_duration_minutes),
            _ms(self.session_warning_threshold_minutes),
        )

    @property
    def retention_ms(self) -> int:
        return _ms(self.session_retention_minutes)


def words_of(text: str) -> list[str]:
    """The words of a comma list."""
    return [word for word in re.split(r"[,\s]+", text) if word]


def networks_of(text: str) -> tuple[Network, ...]:
    """The networks of a comma list; an address is a network of one.

    Raises:
        ValueError: one is neither.
    """
    return tuple(ipaddress.ip_network(word) for word in words_of(text))


def _ms(minutes: float) -> int:
    return max(1, round(minutes * MINUTE_MS))
