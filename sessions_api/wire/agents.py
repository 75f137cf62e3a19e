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

from typing import Any, Final, get_args

from sessions_api.domain.agents import LONGEST_DELAY_MS, AgentDefinition, AgentKind
from sessions_api.domain.ids import AgentId, is_uuid
from sessions_api.domain.sessions import ON_BUSY
from sessions_api.domain.timeouts import TimeoutChoice
from sessions_api.wire.timeouts import ChoiceReader, TimeoutBounds

KINDS: Final[tuple[str, ...]] = get_args(AgentKind)
SESSION_NAMES: Final = {
    "SESSION_TIMEOUT_MINUTES": "timeoutMinutes",
    "SESSION_AUTO_RENEW": "autoRenew",
    "SESSION_MAX_DURATION_MINUTES": "maxDurationMinutes",
    "SESSION_WARNING_THRESHOLD_MINUTES": "warningThresholdMinutes",
}
_KNOWN: Final = frozenset(
    {"id", "name", "kind", "config", "session", "onBusy", "turnTimeoutMs", "maxAttempts", "history"}
)
_NUMBERS: Final = {  # field: low, high
    "turnTimeoutMs": (1_000, 86_400_000),
    "maxAttempts": (1, 20),
    "history": (0, 1_000),
}


class DefinitionReader:
    """Reads definitions and collects everything that is wrong with them, in words."""

    def __init__(self, bounds: TimeoutBounds) -> None:
        self._bounds = bounds
        self.problems: list[str] = []

    def read_all(self, document: dict[str, Any]) -> list[AgentDefinition]:
        """The ``[[agents]]`` of a document. Look at :attr:`problems` afterwards."""
        self.problems += [f"{key}: unknown; allowed is [[agents]]" for key in document if key != "agents"]
        tables = document.get("agents", [])
        if not isinstance(tables, list):
            self.problems.append("agents: write [[agents]], once for each agent")
            return []
        found: dict[str, AgentDefinition] = {}
        for number, table in enumerate(tables, 1):
            definition = self.read(table, f"agents[{number}]")
            if definition is None:
                continue
            if definition.agent_id in found:
                self.problems.append(f"agents[{number}].id: {definition.agent_id} is defined twice")
            found[definition.agent_id] = definition
        return list(found.values())

    def read(self, table: Any, where: str) -> AgentDefinition | None:
        """One definition, or None if there is no telling what it should be."""
        if not isinstance(table, dict):
            self.problems.append(f"{where}: must be a table")
            return None
        before = len(self.problems)
        self.problems += [
            f"{where}.{key}: unknown; allowed is {', '.join(sorted(_KNOWN))}"
            for key in table
            if key not in _KNOWN
        ]
        agent_id = table.get("id")
        if not isinstance(agent_id, str) or not is_uuid(agent_id):
            self.problems.append(f"{where}.id: {agent_id!r} is no UUID")
        name = table.get("name", "")
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            self.problems.append(f"{where}.name: must be text of 1..200 characters")
        self._choose(table, "kind", KINDS, where, needed=True)
        on_busy = self._choose(table, "onBusy", ON_BUSY, where)
        numbers = {key: self._number(table, key, where) for key in _NUMBERS}
        config = self._config(table.get("config", {}), f"{where}.config")
        session = self._session(table.get("session", {}), f"{where}.session")
        if len(self.problems) > before:
            return None
        return AgentDefinition(
            AgentId(str(agent_id).lower()),
            str(name),
            table["kind"],
            config=config,
            session=session,
            on_busy=on_busy,  # type: ignore[arg-type]  # one of ON_BUSY
            history=_or(numbers["history"], 50),
            turn_timeout_ms=_or(numbers["turnTimeoutMs"], 300_000),
            max_attempts=_or(numbers["maxAttempts"], 3),
        )

    def _session(self, table: Any, where: str) -> TimeoutChoice:
        if not isinstance(table, dict):
            self.problems.append(f"{where}: must be a table")
            return TimeoutChoice()
        given: dict[str, object] = {}
        for key, value in table.items():
            name = SESSION_NAMES.get(str(key), str(key))
            if name not in SESSION_NAMES.values():
                self.problems.append(f"{where}.{key}: unknown; allowed is {', '.join(SESSION_NAMES)}")
            elif name in given:
                self.problems.append(f"{where}.{key}: {name} is set twice")
            given[name] = _truth(value) if name == "autoRenew" else value
        reader = ChoiceReader(self._bounds, prefix=f"{where}.")
        choice = reader.read(given)
        self.problems += [
            f"{bad.field}={bad.provided!r}: {bad.reason}; allowed is {bad.allowed}" for bad in reader.errors
        ]
        return choice

    def _config(self, table: Any, where: str) -> dict[str, Any]:
        """What the kind of agent is told; an echo knows only ``delayMs``."""
        if not isinstance(table, dict):
            self.problems.append(f"{where}: must be a table")
            return {}
        self.problems += [f"{where}.{key}: unknown; allowed is delayMs" for key in table if key != "delayMs"]
        delay = table.get("delayMs", 0)
        if type(delay) not in (int, float) or not 0 <= delay <= LONGEST_DELAY_MS:
            self.problems.append(f"{where}.delayMs: {delay!r}; allowed is 0..{LONGEST_DELAY_MS}")
        return table

    def _choose(
        self, table: dict[str, Any], key: str, allowed: tuple[str, ...], where: str, *, needed: bool = False
    ) -> str | None:
        value = table.get(key)
        if value is None and not needed:
            return None
        if value not in allowed:
            self.problems.append(f"{where}.{key}: {value!r}; allowed is {' | '.join(allowed)}")
            return None
        return str(value)

    def _number(self, table: dict[str, Any], key: str, where: str) -> int | None:
        value = table.get(key)
        low, high = _NUMBERS[key]
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.problems.append(f"{where}.{key}: {value!r}; allowed is {low}..{high}")
            return None
        return value


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _truth(value: object) -> object:
    """``"true"`` and ``"false"``, as an environment has them, are booleans here."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    return value
