"""An agent's definition as it is written down, in a TOML file or a request.

::

    [[agents]]
    id = "7d1f0f6e-2f57-4a8b-9d5c-0f1f7a1c9e11"
    name = "Support"
    kind = "echo"
    onBusy = "queue"
    turnTimeoutMs = 60000
    [agents.session]
    timeoutMinutes = 45
    SESSION_AUTO_RENEW = true      # the reference's names do as well
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, get_args

from sessions_api.domain.agents import AgentDefinition, AgentKind
from sessions_api.domain.ids import AgentId, is_uuid
from sessions_api.domain.sessions import ON_BUSY
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.errors import FieldError, InvalidInput
from sessions_api.wire.agentconfig import ConfigReader, new_secret, shown_of
from sessions_api.wire.timeouts import ChoiceReader, TimeoutBounds

KINDS: Final[tuple[AgentKind, ...]] = get_args(AgentKind)
SESSION_NAMES: Final = {
    "SESSION_TIMEOUT_MINUTES": "timeoutMinutes",
    "SESSION_AUTO_RENEW": "autoRenew",
    "SESSION_MAX_DURATION_MINUTES": "maxDurationMinutes",
    "SESSION_WARNING_THRESHOLD_MINUTES": "warningThresholdMinutes",
}
NUMBERS: Final = {  # field: low, high
    "history": (0, 1_000),
    "turnTimeoutMs": (1_000, 86_400_000),
    "maxAttempts": (1, 20),
    "concurrency": (1, 1_000),
}
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MEMBERS: Final = ("name", "kind", "config", "session", "onBusy", *NUMBERS)
_SHOWN_ONLY: Final = frozenset({"agentId", "availability"})
"""What a read shows beside the definition: who reads, changes a thing and writes need not strip it."""


class DefinitionReader:
    """Reads definitions and collects everything that is wrong with them.

    *environ* is for a file, whose secrets may stand in the environment.
    """

    def __init__(self, bounds: TimeoutBounds, *, environ: Mapping[str, str] | None = None) -> None:
        self._bounds = bounds
        self._environ = environ
        self.errors: list[FieldError] = []
        self.has_made_secret = False
        """The last definition had no signing secret and was given one: its author has to be told."""

    @property
    def problems(self) -> list[str]:
        """The errors in words, for whoever wrote a file."""
        return [_in_words(bad) for bad in self.errors]

    # ------------------------------------------------------------ a file

    def read_all(self, document: dict[str, Any]) -> list[AgentDefinition]:
        """The ``[[agents]]`` of a document. Look at :attr:`problems` afterwards."""
        for key in document:
            if key != "agents":
                self._refuse(key, "is unknown", None, "[[agents]]")
        tables = document.get("agents", [])
        if not isinstance(tables, list):
            self._refuse("agents", "is no list", None, "[[agents]], once for each agent")
            return []
        found: dict[str, AgentDefinition] = {}
        for number, table in enumerate(tables, 1):
            where = f"agents[{number}]"
            if not isinstance(table, dict):
                self._refuse(where, "must be a table", None, "[[agents]]")
                continue
            agent_id = table.get("id")
            if not isinstance(agent_id, str) or not is_uuid(agent_id):
                self._refuse(f"{where}.id", "is no UUID", shown_of(agent_id), "8-4-4-4-12 hex digits")
                agent_id = ""
            members = {key: value for key, value in table.items() if key != "id"}
            definition = self._read(agent_id.lower(), members, f"{where}.", known=("id", *_MEMBERS))
            if definition is None:
                continue
            if definition.agent_id in found:
                self._refuse(f"{where}.id", "is defined twice", definition.agent_id, "each id once")
            found[definition.agent_id] = definition
        return list(found.values())

    # ------------------------------------------------------------ a request

    def read_put(self, agent_id: str, body: Any, stored: AgentDefinition | None) -> AgentDefinition:
        """The definition that a request puts in place of *stored*.

        Raises:
            InvalidInput: names every bad field.
        """
        if not is_uuid(agent_id):
            self._refuse("agentId", "is no UUID", shown_of(agent_id), "8-4-4-4-12 hex digits")
        definition = None
        if isinstance(body, dict):
            named = body.get("agentId")
            if named is not None and (not isinstance(named, str) or named.lower() != agent_id.lower()):
                self._refuse("agentId", "is not the path's", shown_of(named), agent_id[:64])
            members = {key: value for key, value in body.items() if key not in _SHOWN_ONLY}
            definition = self._read(agent_id.lower(), members, "", known=_MEMBERS, stored=stored)
        else:
            self._refuse("body", "must be an object", None, ", ".join(_MEMBERS))
        if definition is None or self.errors:
            first = self.errors[0]
            raise InvalidInput(f"Invalid agent definition: {first.field} {first.reason}", self.errors)
        return definition

    # ------------------------------------------------------------ both

    def _read(
        self,
        agent_id: str,
        members: dict[str, Any],
        prefix: str,
        *,
        known: tuple[str, ...],
        stored: AgentDefinition | None = None,
    ) -> AgentDefinition | None:
        """One definition, or None if anything is wrong with it."""
        before = len(self.errors)
        for key in members:
            if key not in _MEMBERS:
                self._refuse(f"{prefix}{key}", "is unknown", None, ", ".join(known))
        name = members.get("name")
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            self._refuse(f"{prefix}name", "is unusable", shown_of(name), "text of 1..200 characters")
        elif _CONTROL.search(name):
            self._refuse(f"{prefix}name", "has control characters", None, "text in one line")
        kind = self._choice(members, "kind", KINDS, prefix, is_needed=True)
        on_busy = self._choice(members, "onBusy", ON_BUSY, prefix)
        numbers = {key: self._number(members, key, prefix) for key in NUMBERS}
        session = self._session(members.get("session"), f"{prefix}session")
        config = self._config(kind, members.get("config"), f"{prefix}config", stored)
        if len(self.errors) > before:
            return None
        chosen = {
            "history": numbers["history"],
            "turn_timeout_ms": numbers["turnTimeoutMs"],
            "max_attempts": numbers["maxAttempts"],
            "concurrency": numbers["concurrency"],
        }
        return AgentDefinition(
            AgentId(agent_id),
            str(name),
            kind,  # type: ignore[arg-type]  # one of KINDS
            config=config,
            session=session,
            on_busy=on_busy,  # type: ignore[arg-type]  # one of ON_BUSY
            **{key: value for key, value in chosen.items() if value is not None},
        )

    def _session(self, table: Any, where: str) -> TimeoutChoice:
        if table is None:
            return TimeoutChoice()
        if not isinstance(table, dict):
            self._refuse(where, "must be an object", None, ", ".join(SESSION_NAMES.values()))
            return TimeoutChoice()
        given: dict[str, object] = {}
        for key, value in table.items():
            name = SESSION_NAMES.get(str(key), str(key))
            if name not in SESSION_NAMES.values():
                self._refuse(f"{where}.{key}", "is unknown", None, ", ".join(SESSION_NAMES.values()))
            elif name in given:
                self._refuse(f"{where}.{key}", f"sets {name} twice", None, "each once")
            elif value is not None:
                given[name] = _truth(value) if name == "autoRenew" else value
        reader = ChoiceReader(self._bounds, prefix=f"{where}.")
        choice = reader.read(given)
        if choice.timeout_ms is not None:  # else a session's config may still bring one that fits
            reader.check(choice, choice.timeout_ms)
        self.errors += reader.errors
        return choice

    def _config(
        self, kind: str | None, table: Any, where: str, stored: AgentDefinition | None
    ) -> dict[str, object]:
        if kind is None:  # said already; without it there is no telling what belongs here
            return {}
        reader = ConfigReader(where, environ=self._environ, stored=stored)
        config = reader.read(kind, table)  # type: ignore[arg-type]  # one of KINDS
        self.errors += reader.errors
        if kind == "webhook" and "secret" not in config and not reader.errors:
            if self._environ is not None:  # every replica would make another one, and tell nobody
                allowed = "secret or secretEnv; `echo whsec_$(openssl rand -base64 32)` makes one"
                self._refuse(f"{where}.secret", "is needed", None, allowed)
            config["secret"] = new_secret()
            self.has_made_secret = True
        return config

    def _choice(
        self,
        members: dict[str, Any],
        key: str,
        allowed: tuple[str, ...],
        prefix: str,
        *,
        is_needed: bool = False,
    ) -> str | None:
        value = members.get(key)
        if value is None and not is_needed:
            return None
        if not isinstance(value, str) or value not in allowed:
            self._refuse(f"{prefix}{key}", "is unknown", shown_of(value), " | ".join(allowed))
            return None
        return value

    def _number(self, members: dict[str, Any], key: str, prefix: str) -> int | None:
        value = members.get(key)
        low, high = NUMBERS[key]
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._refuse(f"{prefix}{key}", "is no whole number in range", shown_of(value), f"{low}..{high}")
            return None
        return value

    def _refuse(self, name: str, reason: str, provided: str | float | bool | None, allowed: str) -> None:
        self.errors.append(FieldError(name, reason, provided, allowed))


def _in_words(bad: FieldError) -> str:
    shown = "" if bad.provided is None else f"={bad.provided!r}"
    return f"{bad.field}{shown}: {bad.reason}" + (f"; allowed is {bad.allowed}" if bad.allowed else "")


def _truth(value: object) -> object:
    """``"true"`` and ``"false"``, as an environment has them, are booleans here."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    return value
