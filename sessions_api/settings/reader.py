"""Reads the settings from an environment, and collects everything that is wrong with them."""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints
from urllib.parse import quote

import msgspec
from msgspec import Meta

from sessions_api.domain.agents import ECHO_ID, AgentDefinition
from sessions_api.domain.limits import FORM, parse_limit
from sessions_api.errors import SettingsError
from sessions_api.settings.fields import Settings, Switch, networks_of, words_of
from sessions_api.telemetry.tracing import exporters_of
from sessions_api.wire.definitions import DefinitionReader
from sessions_api.wire.timeouts import plain

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
CLIENTS: Final = frozenset({"SESSIONS_URL", "SESSIONS_API_KEY"})
"""Read by the commands that are clients of a running service."""
DEV_DEFAULTS: Final = dict.fromkeys(
    ("SESSIONS_LIMIT_CREATES_IP", "SESSIONS_LIMIT_MESSAGES_SESSION_IP", "SESSIONS_LIMIT_REQUESTS_IP"), "off"
)
"""With SESSIONS_DEV: the loops and tests of a developer all come from one address."""
HIDDEN: Final = frozenset({"REDIS_URL", "SESSIONS_KEYS"})
"""Their values may hold what is nobody's to read in a log."""
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]+", re.ASCII)
_USUAL_PORT: Final = re.compile(r"http://.*:80|https://.*:443")
"""What no browser writes, so that it would never be met."""
VARIABLES: Final = tuple(
    name.upper()
    for name in Settings.__struct_fields__
    if name not in {"agents", "ignored", "trace_exporters"}
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
    if (meta.extra or {}).get("is_limit"):
        return FORM
    if meta.pattern is not None:
        return f"text like {meta.pattern}"
    return "text"


class Reader:
    """Reads one environment and collects what is wrong with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        is_dev = _SWITCHES.get(environ.get("SESSIONS_DEV", "").strip().lower()) == "on"
        self._environ = {**DEV_DEFAULTS, **environ} if is_dev else environ
        self._problems: list[str] = []
        self._ignored: list[str] = []
        self._testing = environ.get("SESSIONS_ENV", "").strip().lower() == "test"

    def settings(self) -> Settings:
        self._refuse_misspelt()
        values = {name: self._value(name) for name in VARIABLES}
        chosen = {name.lower(): value for name, value in values.items() if value is not None}
        settings = Settings(**chosen)
        if settings.redis_password_file:
            settings = msgspec.structs.replace(settings, redis_url=self._url_with_password(settings))
        self._check_across(settings)
        agents = self._agents(settings)
        exporters, problems = exporters_of(self._environ)
        self._problems += problems
        if self._problems:
            raise SettingsError(self._problems)
        return msgspec.structs.replace(
            settings, agents=tuple(agents), ignored=tuple(self._ignored), trace_exporters=exporters
        )

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
            if (meta.extra or {}).get("is_limit"):
                parse_limit(raw)
            word = raw.lower() if get_args(kind) else raw
            return msgspec.convert(word, hint)
        except (ValueError, KeyError):  # msgspec's ValidationError is a ValueError
            shown = "(hidden)" if name in HIDDEN else repr(raw[:100])
            self._problems.append(f"{name}={shown}: allowed is {_range(hint, testing=self._testing)}")
            return None

    def _number(self, raw: str, kind: Any, meta: Meta) -> float:
        value: float = kind(raw) if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", raw, re.ASCII) else math.nan
        low = (meta.extra or {}).get("test_ge", meta.ge) if self._testing else meta.ge
        if not low <= value <= meta.le:  # type: ignore[operator]
            raise ValueError(raw)
        return value

    def _url_with_password(self, settings: Settings) -> str:
        """REDIS_URL, of whatever topology, with the password that stands in a file."""
        path, url = settings.redis_password_file, settings.redis_url
        scheme, there, rest = url.partition("://")
        authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
        userinfo, _, hosts = authority.rpartition("@")
        if not there or ":" in userinfo:
            fault = "names no server" if not there else "has a password already"
            self._problems.append(f"REDIS_PASSWORD_FILE={path} is set, and REDIS_URL {fault}")
            return url
        try:
            password = Path(path).read_text("utf-8").strip("\r\n")
        except (OSError, ValueError) as error:  # the latter: not UTF-8
            self._problems.append(
                f"REDIS_PASSWORD_FILE={path}: cannot be read: {getattr(error, 'strerror', 'no text')}"
            )
            return url
        if not password:
            self._problems.append(f"REDIS_PASSWORD_FILE={path} is empty")
        return f"{scheme}://{userinfo}:{quote(password, safe='')}@{hosts}{tail}"

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
        for name in ("SESSIONS_OUTGOING_ALLOW", "SESSIONS_TRUSTED_PROXIES"):
            text: str = getattr(settings, name.lower())
            try:
                networks_of(text)
            except ValueError as error:
                self._problems.append(
                    f"{name}={text[:100]!r}: {error}; allowed are networks and addresses "
                    "with commas between, like 10.1.0.0/16,192.168.7.20"
                )
        if settings.sessions_metrics_port == settings.port != 0:
            self._problems.append(
                f"SESSIONS_METRICS_PORT={settings.port} is PORT: "
                "allowed is another port, or 0, which leaves /metrics on PORT"
            )
        self._check_access(settings)

    def _check_access(self, settings: Settings) -> None:
        """Keys that can be read, and an address and origins that may be answered without any."""
        keyring = settings.keyring()
        try:
            keyring.load()
        except SettingsError as error:
            self._problems += error.problems
            return
        for origin in words_of(settings.sessions_cors_origins):
            if _ORIGIN.fullmatch(origin) is None or _USUAL_PORT.fullmatch(origin) is not None:
                self._problems.append(
                    f"SESSIONS_CORS_ORIGINS={origin[:100]!r} is no origin as browsers write it: allowed is a "
                    "scheme and a host, in lower case, with a port where it is not the scheme's own, and "
                    "nothing behind: https://shop.example"
                )
        if keyring.is_configured:
            return
        if settings.sessions_keys_file:
            self._problems.append(
                f"SESSIONS_KEYS_FILE={settings.sessions_keys_file} holds no key: make one with "
                f"`sessions-api keys new --app NAME --scope admin --file {settings.sessions_keys_file}`"
            )
        if settings.sessions_cors_origins:
            self._problems.append(
                "SESSIONS_CORS_ORIGINS is set and no access key is: without keys only pages of this "
                "service's own origin are answered"
            )
        if not _is_loopback(settings.host):
            self._problems.append(
                f"HOST={settings.host!r}: only a loopback address (127.0.0.1, ::1, localhost) is "
                "allowed while no access keys are configured, since anyone who reaches the port "
                "could read every conversation; make one with `sessions-api keys new`, and name it in "
                "SESSIONS_KEYS or SESSIONS_KEYS_FILE"
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
