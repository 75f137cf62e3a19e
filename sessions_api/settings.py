"""Every setting: one frozen Struct, read from the environment once, at the start.

A bad value stops the start with the variable's name, what it was and the range;
nothing is clamped, and a misspelt name is refused with the nearest one. Only
``app.py`` and the CLI read this; parts are told what they need.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from sessions_api.domain.agents import ECHO_ID, AgentDefinition
from sessions_api.domain.ids import LOCAL_APP, AppName
from sessions_api.domain.timeouts import MINUTE_MS, TimeoutConfig
from sessions_api.errors import SettingsError
from sessions_api.wire.definitions import DefinitionReader
from sessions_api.wire.timeouts import TimeoutBounds, plain

Switch = Literal["on", "off"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_LOOPBACK: Final = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
_SWITCHES: Final = {
    word: value
    for value, words in {"on": ("on", "true", "1", "yes"), "off": ("off", "false", "0", "no")}.items()
    for word in words
}

# Accepted for the sake of environments written for the reference; they change nothing here.
IGNORED: Final = {
    "SESSION_CLEANUP_INTERVAL_MINUTES": "sessions expire at their instant, there is no sweep to time",
    "CLEAR_SESSIONS_ON_SHUTDOWN": "sessions live in Redis and outlive the process",
}
CLIENTS: Final = frozenset({"SESSIONS_URL"})
"""Read by the commands that are clients of a running service."""
TEST_MINIMUM_MINUTES: Final = 0.001
"""Below this a session ends before its creator hears of it."""


def _minutes(low: float, high: float, description: str) -> Any:
    """Minutes, fractions allowed; *low* holds in production, ``SESSIONS_ENV=test`` loosens it."""
    return Meta(ge=low, le=high, description=description, extra={"test_ge": TEST_MINIMUM_MINUTES})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator chose; field by field the environment variable of the name in capitals."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 3000
    redis_url: Annotated[
        str, Meta(description="redis://, rediss:// or unix://; `dev` brings its own server without it")
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
        Meta(description="the built-in agent Echo and the page /chat; `sessions-api dev` sets it"),
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
    sessions_metrics_port: Annotated[
        int, Meta(ge=0, le=65535, description="port of /metrics alone; 0 leaves it on PORT")
    ] = 0
    sessions_drain_seconds: Annotated[
        int, Meta(ge=0, le=300, description="how long requests may finish after SIGTERM")
    ] = 20
    sessions_redis_deadline_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="how long a request waits for Redis, through repeats")
    ] = 2500
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

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check everything.

        Raises:
            SettingsError: lists every problem, not only the first.
        """
        return _Reader(environ).settings()

    @property
    def data_dir(self) -> Path:
        return Path(self.sessions_data_dir)

    @property
    def drain_seconds(self) -> int:
        return self.sessions_drain_seconds

    @property
    def is_dev(self) -> bool:
        return self.sessions_dev == "on"

    @property
    def outgoing_allow(self) -> tuple[Network, ...]:
        """Private networks that requests to agents may go to; in `dev` this machine is one."""
        return (*_networks(self.sessions_outgoing_allow), *(_LOOPBACK if self.is_dev else ()))

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


def _networks(text: str) -> tuple[Network, ...]:
    """The networks of a comma list; an address is a network of one.

    Raises:
        ValueError: one is neither.
    """
    return tuple(ipaddress.ip_network(part) for part in re.split(r"[,\s]+", text) if part)


def _ms(minutes: float) -> int:
    return max(1, round(minutes * MINUTE_MS))


VARIABLES: Final = tuple(
    name.upper() for name in Settings.__struct_fields__ if name not in {"agents", "ignored"}
)
"""Every variable there is; docs/configuration.md lists the same."""
_HINTS: Final = get_type_hints(Settings, include_extras=True)
ECHO: Final = AgentDefinition(ECHO_ID, "Echo", "echo")


def range_of(variable: str) -> str:
    """The allowed values of *variable* in production, for people."""
    return _range(_HINTS[variable.lower()], testing=False)


def _parts(hint: Any) -> tuple[Any, Meta]:
    kind, *rest = get_args(hint)
    return kind, next(item for item in rest if isinstance(item, Meta))


def _range(hint: Any, *, testing: bool) -> str:
    kind, meta = _parts(hint)
    if kind in (int, float):
        low = (meta.extra or {}).get("test_ge", meta.ge) if testing else meta.ge
        return f"{plain(low)}..{plain(meta.le)}"  # type: ignore[arg-type]
    if get_args(kind):
        return " | ".join(get_args(kind))
    if meta.pattern is not None:
        return f"text like {meta.pattern}"
    return "text"


class _Reader:
    """Reads one environment and collects what is wrong with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []
        self._ignored: list[str] = []
        self._testing = environ.get("SESSIONS_ENV", "").strip().lower() == "test"

    def settings(self) -> Settings:
        self._refuse_misspelt()
        values = {name: self._value(name) for name in VARIABLES}
        chosen = {name.lower(): value for name, value in values.items() if value is not None}
        settings = Settings(**chosen)
        self._check_across(settings)
        agents = self._agents(settings)
        if self._problems:
            raise SettingsError(self._problems)
        return msgspec.structs.replace(settings, agents=tuple(agents), ignored=tuple(self._ignored))

    def _refuse_misspelt(self) -> None:
        for name in sorted(self._environ):
            if name in IGNORED:
                self._ignored.append(name)
            elif name.startswith(("SESSION_", "SESSIONS_")) and name not in {*VARIABLES, *CLIENTS}:
                nearest = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.0)[0]
                self._problems.append(f"{name} is no setting of this service; did you mean {nearest}?")

    def _value(self, name: str) -> Any:
        """The converted value, or None for the default."""
        raw = self._environ.get(name, "").strip()
        if not raw:
            return None
        hint = _HINTS[name.lower()]
        kind, meta = _parts(hint)
        try:
            if kind in (int, float):
                return self._number(raw, kind, meta)
            if kind == Switch:
                return _SWITCHES[raw.lower()]
            word = raw.lower() if get_args(kind) else raw
            return msgspec.convert(word, hint)
        except (ValueError, KeyError):  # msgspec's ValidationError is a ValueError
            shown = "(hidden)" if name == "REDIS_URL" else repr(raw[:100])
            self._problems.append(f"{name}={shown}: allowed is {_range(hint, testing=self._testing)}")
            return None

    def _number(self, raw: str, kind: Any, meta: Meta) -> float:
        value: float = kind(raw) if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", raw, re.ASCII) else math.nan
        low = (meta.extra or {}).get("test_ge", meta.ge) if self._testing else meta.ge
        if not low <= value <= meta.le:  # type: ignore[operator]
            raise ValueError(raw)
        return value

    def _check_across(self, settings: Settings) -> None:
        """MIN ≤ DEFAULT ≤ MAX, and an address that may be listened on without keys."""
        low, mid, high = (
            "SESSION_MIN_TIMEOUT_MINUTES",
            "SESSION_DEFAULT_TIMEOUT_MINUTES",
            "SESSION_MAX_TIMEOUT_MINUTES",
        )
        for smaller, larger in ((low, mid), (mid, high)):
            small, large = getattr(settings, smaller.lower()), getattr(settings, larger.lower())
            if small > large:
                self._problems.append(
                    f"{smaller}={plain(small)} is above {larger}={plain(large)}: "
                    f"allowed is {low} ≤ {mid} ≤ {high}"
                )
        try:
            _networks(settings.sessions_outgoing_allow)
        except ValueError as error:
            self._problems.append(
                f"SESSIONS_OUTGOING_ALLOW={settings.sessions_outgoing_allow[:100]!r}: {error}; "
                "allowed are networks and addresses with commas between, like 10.1.0.0/16,192.168.7.20"
            )
        if settings.sessions_metrics_port == settings.port != 0:
            self._problems.append(
                f"SESSIONS_METRICS_PORT={settings.port} is PORT: "
                "allowed is another port, or 0, which leaves /metrics on PORT"
            )
        if not _is_loopback(settings.host):
            self._problems.append(
                f"HOST={settings.host!r}: only a loopback address (127.0.0.1, ::1, localhost) is "
                "allowed while no access keys are configured, since anyone who reaches the port "
                "could read every conversation; put a proxy that authenticates in front"
            )

    def _agents(self, settings: Settings) -> list[AgentDefinition]:
        agents = {ECHO_ID: ECHO} if settings.is_dev else {}
        path = settings.sessions_agents_file
        if path:
            reader = DefinitionReader(settings.bounds, environ=self._environ)
            for definition in reader.read_all(self._tables(path)):
                agents[definition.agent_id] = definition
            self._problems += [f"SESSIONS_AGENTS_FILE={path}: {problem}" for problem in reader.problems]
        return list(agents.values())

    def _tables(self, path: str) -> dict[str, Any]:
        try:
            return tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            self._problems.append(f"SESSIONS_AGENTS_FILE={path}: cannot be read: {error.strerror}")
        except ValueError as error:  # not TOML, not UTF-8
            self._problems.append(f"SESSIONS_AGENTS_FILE={path}: {error}")
        return {}


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
