"""What each kind of agent is told in its ``config``, and which of it is secret.

::

    echo      delayMs                     between two words
    worker                                nothing: it comes and asks
    webhook   url, secret                 the secret signs the requests (Standard Webhooks)
    openai    baseUrl, model, apiKey, system, temperature, maxTokens

A secret is written and never shown: a read has ``********`` in its place, and
who writes that keeps what is stored. In a file a secret may be left to the
environment: ``apiKeyEnv`` and ``secretEnv`` name the variable. Over HTTP they
may not, or whoever may define an agent could read the environment through it.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from sessions_api.domain.agents import LONGEST_DELAY_MS, AgentDefinition, AgentKind
from sessions_api.errors import FieldError

MASK: Final = "********"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  says that what follows is one
SECRET_BYTES: Final = (24, 64)  # as Standard Webhooks has it
MAX_URL_CHARS: Final = 2_000
MAX_SYSTEM_CHARS: Final = 20_000
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Setting(NamedTuple):
    """One member of a ``config``."""

    is_usable: Callable[[Any], bool]
    allowed: str
    is_needed: bool = False
    is_secret: bool = False


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= most


def _is_url(value: Any) -> bool:
    """An absolute http(s) URL that holds no password and nothing a request line could not."""
    if not _is_text(value, MAX_URL_CHARS) or not value.isascii() or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and port != 0
        and "@" not in parts.netloc
        and not parts.fragment
    )


def _is_base_url(value: Any) -> bool:
    return _is_url(value) and "?" not in value


def _is_signing_secret(value: Any) -> bool:
    if not isinstance(value, str) or not value.startswith(SECRET_PREFIX):
        return False
    try:
        key = base64.b64decode(value.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return SECRET_BYTES[0] <= len(key) <= SECRET_BYTES[1]


def _is_api_key(value: Any) -> bool:
    """What a header can carry."""
    return _is_text(value, 1_000) and value.isascii() and value.isprintable() and " " not in value


_ABSOLUTE: Final = "an absolute http:// or https:// URL without user, password"
_SECRET: Final = f"{SECRET_PREFIX} and base64 of {SECRET_BYTES[0]}..{SECRET_BYTES[1]} bytes"

SETTINGS: Final[dict[AgentKind, dict[str, Setting]]] = {
    "echo": {"delayMs": Setting(lambda x: _is_number(x, 0, LONGEST_DELAY_MS), f"0..{LONGEST_DELAY_MS}")},
    "worker": {},
    "webhook": {
        "url": Setting(_is_url, f"{_ABSOLUTE} or fragment", is_needed=True),
        "secret": Setting(_is_signing_secret, _SECRET, is_secret=True),
    },
    "openai": {
        "baseUrl": Setting(_is_base_url, f"{_ABSOLUTE}, query or fragment", is_needed=True),
        "model": Setting(lambda x: _is_text(x, 200), "text of 1..200 characters", is_needed=True),
        "apiKey": Setting(_is_api_key, "1..1000 printable ASCII characters, no blank", is_secret=True),
        "system": Setting(
            lambda x: _is_text(x, MAX_SYSTEM_CHARS), f"text of 1..{MAX_SYSTEM_CHARS} characters"
        ),
        "temperature": Setting(lambda x: _is_number(x, 0, 2), "0..2"),
        "maxTokens": Setting(
            lambda x: isinstance(x, int) and _is_number(x, 1, 1_000_000), "a whole number 1..1000000"
        ),
    },
}
SECRETS: Final = {
    kind: [name for name, setting in settings.items() if setting.is_secret]
    for kind, settings in SETTINGS.items()
}


def new_secret() -> str:
    """A webhook's signing secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def masked(definition: AgentDefinition) -> dict[str, object]:
    """The definition's config as anybody may see it."""
    hidden = SECRETS[definition.kind]
    return {name: MASK if name in hidden else value for name, value in definition.config.items()}


class ConfigReader:
    """Reads one ``config`` and collects every bad field of it, none with a secret's value.

    *environ*: where a file's ``…Env`` members look; None where they may not stand.
    *stored*: the definition that ``********`` refers to.
    """

    def __init__(
        self, prefix: str, *, environ: Mapping[str, str] | None = None, stored: AgentDefinition | None = None
    ) -> None:
        self._prefix = prefix
        self._environ = environ
        self._stored = stored
        self.errors: list[FieldError] = []

    def read(self, kind: AgentKind, table: Any) -> dict[str, object]:
        """The config to store. Look at :attr:`errors` afterwards."""
        if table is None:
            table = {}
        if not isinstance(table, dict):
            self._refuse("", "must be an object", None, "an object")
            return {}
        given = {name: value for name, value in table.items() if value is not None}
        if self._environ is not None:
            self._take_from_environment(kind, given, self._environ)
        settings = SETTINGS[kind]
        for name in given:
            if name not in settings:
                self._refuse(str(name), "is unknown", None, self._known(kind))
        for name, setting in settings.items():
            if name not in given:
                if setting.is_needed:
                    self._refuse(name, "is needed", None, setting.allowed)
            elif setting.is_secret and given[name] == MASK:
                self._keep(kind, name, given)
            elif not setting.is_usable(given[name]):
                shown = None if setting.is_secret else shown_of(given[name])
                self._refuse(name, "is unusable", shown, setting.allowed)
        return given

    def _known(self, kind: AgentKind) -> str:
        names = list(SETTINGS[kind])
        if self._environ is not None:
            names += [f"{name}Env" for name in SECRETS[kind]]
        return ", ".join(names) or f"nothing: a {kind} has no config"

    def _keep(self, kind: AgentKind, name: str, given: dict[str, object]) -> None:
        """Put what is stored in the mask's place.

        An API key stays with its address: otherwise whoever may change the
        address could have the key sent there.
        """
        stored = self._stored
        kept = stored.config.get(name) if stored is not None and stored.kind == kind else None
        if stored is None or kept is None:
            self._refuse(
                name, f"is {MASK}, and nothing is stored that it could keep", None, "the secret itself"
            )
        elif kind == "openai" and stored.config.get("baseUrl") != given.get("baseUrl"):
            self._refuse(name, "is needed again, since baseUrl changes", None, "the key for that address")
        else:
            given[name] = kept

    def _take_from_environment(
        self, kind: AgentKind, given: dict[str, object], environ: Mapping[str, str]
    ) -> None:
        for name in SECRETS[kind]:
            variable = given.pop(f"{name}Env", None)
            if variable is None:
                continue
            where = f"{name}Env"
            if name in given:
                self._refuse(where, f"stands beside {name}", None, "one of the two")
            elif not isinstance(variable, str) or _VARIABLE.fullmatch(variable) is None:
                self._refuse(where, "is no variable's name", shown_of(variable), "a variable's name")
            elif not environ.get(variable):
                self._refuse(where, "names a variable that is not set", variable, "one that is set")
            else:
                given[name] = environ[variable].strip()

    def _refuse(self, name: str, reason: str, provided: str | float | bool | None, allowed: str) -> None:
        where = f"{self._prefix}.{name}" if name else self._prefix
        self.errors.append(FieldError(where, reason, provided, allowed))


def shown_of(value: object) -> str | int | float | bool | None:
    """*value* as an error may show it: a short scalar, no URL that could hold a password."""
    if isinstance(value, str):
        return value if len(value) <= 64 and "@" not in value else None
    if isinstance(value, bool | float):
        return value
    return value if isinstance(value, int) and abs(value) < 2**53 else None
