"""Spans, for a service that may trace or not: what is asked of whoever does, and its shape when nobody does.

A trace context travels as one string (domain/traces.py) that each layer may
replace by its own: the ASGI layer (api/traced.py) puts the server span's into
the request's headers, an attempt the turn span's into its turn, a call the client
span's into what it sends. So whatever lies between passes on what it finds, and
is the same whether this service records spans or not; off, a caller's
``traceparent`` reaches the agent as it came.

This module and the classes in it record nothing and import nothing.
``spans.py`` has those that do, and is the only one that loads OpenTelemetry:
:func:`tracing_by` does so when the operator asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final, NamedTuple

from sessions_api.domain.agents import AgentDefinition
from sessions_api.domain.traces import NO_TRACE, Trace
from sessions_api.domain.turns import ClaimedTurn

EXPORTERS: Final = ("otlp", "console")
INSTALL: Final = "pip install 'sessions-api[otel]'"
_PROTOCOL: Final = "http/protobuf"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Arrived(NamedTuple):
    """What a request to this service says of itself, in OpenTelemetry's words."""

    method: str
    """One of the known ones, or ``_OTHER``."""
    path: str
    scheme: str
    route: str | None
    """The template of the path; None if it has none."""
    ids: Mapping[str, str]
    """Attributes: the session, agent and turn that the path names."""


class TurnSpan:
    """The span of one attempt at a turn."""

    __slots__ = ()
    trace: Trace = NO_TRACE
    """Where it stands, for what the agent does to be told below it; empty if nothing is recorded."""

    def event(self, name: str) -> None:
        """Something that happened at this instant; *name* is one of few."""

    def used(self, tokens: Mapping[str, int]) -> None:
        """What the answer cost, as ``agents/tally.py`` counts it."""

    def failed(self, kind: str) -> None:
        """It brought no answer; *kind* is a code, or an exception's class. The first that is told counts."""

    def end(self) -> None:
        """Once, at the end of the attempt."""


class HttpSpan:
    """The span of one request, to this service or from it."""

    __slots__ = ("trace",)

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        """What goes with the request from here on."""

    def answered(self, status: int) -> None:
        """The reply's status is known."""

    def failed(self, kind: str) -> None:
        """No reply, none that could be read, or not what was asked for; as :meth:`TurnSpan.failed`."""

    def end(self) -> None:
        """Repeatable: the first call ends it."""


_NO_TURN: Final = TurnSpan()


class Tracing:
    """Makes spans; this one makes none, and lets every trace pass as it came."""

    is_on = False

    def start(self) -> None:
        """Begin to export; spans that were made before are lost."""

    async def stop(self) -> None:
        """Hand over what was recorded, within seconds; what cannot be is dropped, and said in the log."""

    def request(self, arrived: Arrived, trace: Trace) -> HttpSpan:  # noqa: ARG002  for who records
        """A request that comes within *trace*."""
        return HttpSpan(trace)

    def turn(self, claimed: ClaimedTurn, definition: AgentDefinition) -> TurnSpan:  # noqa: ARG002
        """An attempt that begins now."""
        return _NO_TURN

    def call(self, method: str, url: str, trace: Trace, *, resends: int = 0) -> HttpSpan:  # noqa: ARG002
        """A request to an agent, within *trace*; *resends* counts the redirects before it."""
        return HttpSpan(trace)


OFF: Final = Tracing()


def tracing_by(exporters: tuple[str, ...], *, instance: str) -> Tracing:
    """What traces for the process *instance*: :data:`OFF`, unless there is an exporter to tell."""
    if not exporters:
        return OFF
    from sessions_api.telemetry.spans import Spans  # noqa: PLC0415  off, OpenTelemetry is not loaded

    return Spans(exporters, instance=instance)


def exporters_of(environ: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """The exporters that OpenTelemetry's own variables ask for, and what is wrong with those variables.

    Its other variables are read by its SDK itself. An endpoint alone asks for ``otlp``.
    """
    named = _value(environ, "OTEL_TRACES_EXPORTER")
    endpoint = next((name for name in _ENDPOINTS if _value(environ, name)), None)
    asked = [word.strip().lower() for word in named.split(",") if word.strip()]
    if not asked and endpoint is not None:
        asked = ["otlp"]
    if _value(environ, "OTEL_SDK_DISABLED").lower() == "true" or asked in ([], ["none"]):
        return (), []
    problems = []
    if unknown := [word for word in asked if word not in EXPORTERS]:
        problems.append(
            f"OTEL_TRACES_EXPORTER={named[:100]!r}: {', '.join(unknown)[:100]} is not here: "
            f"allowed is none, or {' and '.join(EXPORTERS)} with a comma between"
        )
    protocol = next(((name, value) for name in _PROTOCOLS if (value := _value(environ, name))), None)
    if "otlp" in asked and protocol is not None and protocol[1].lower() != _PROTOCOL:
        problems.append(
            f"{protocol[0]}={protocol[1][:100]!r}: allowed is {_PROTOCOL}, which collectors take on port 4318"
        )
    if not _is_installed():
        name = "OTEL_TRACES_EXPORTER" if named else endpoint
        problems.append(
            f"{name} is set and OpenTelemetry is not installed: install it with {INSTALL}, "
            "or set OTEL_SDK_DISABLED=true"
        )
    return tuple(dict.fromkeys(asked)), problems


def _value(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


def _is_installed() -> bool:
    try:
        return all(find_spec(f"opentelemetry.{part}") for part in ("sdk.trace", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:  # of a package that is not even there, find_spec cannot find a part
        return False
