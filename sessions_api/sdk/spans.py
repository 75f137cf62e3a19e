"""A turn's part of its trace, in an agent's program that has OpenTelemetry set up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sessions_api.sdk.turn import Turn, TurnFailed


@contextmanager
def span_of(turn: Turn) -> Iterator[None]:
    """A span below that of the request with the message, current while the handler works.

    So what the handler calls and is instrumented stands below it. A program that
    never loaded OpenTelemetry records nothing, and it is not loaded for its sake.
    The span holds ids, and nothing that was said: of an error its class or code.
    """
    if "opentelemetry.trace" not in sys.modules:
        yield
        return
    from opentelemetry import trace  # noqa: PLC0415  see above
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

    carrier = {"traceparent": turn.traceparent or "", "tracestate": turn.tracestate or ""}
    parent = tracecontext.TraceContextTextMapPropagator().extract(carrier)
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": turn.session.agent_id,
        "gen_ai.conversation.id": turn.session.id,
        "sessions_api.turn.id": turn.id,
        "sessions_api.turn.attempt": turn.attempt,
    }
    tracer = trace.get_tracer("sessions_api.sdk")
    with tracer.start_as_current_span(
        "invoke_agent",
        context=parent,
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_attribute(
                "error.type", error.code if isinstance(error, TurnFailed) else type(error).__name__
            )
            span.set_status(trace.StatusCode.ERROR)
            raise
