"""Logs: JSON for machines, lines for people; one stream, also for uvicorn's.

Events are static and in the past tense (``session_expired``); what varies is a
field. Ids may be logged, content, keys and tokens never.

Requests are logged at ``debug``: at ``info`` a line per request would cost as
much as half the request. Metrics count them always.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

Format = Literal["auto", "json", "console"]
# Servers and clients whose chatter repeats what we log ourselves.
_QUIET: Final = ("httpx2", "httpcore2", "urllib3", "websockets", "asyncio")


def configure(level: str = "info", format_: Format = "auto") -> None:
    """Send all logs of this process to stderr, from *level* on. Repeatable; the last call wins."""
    number = logging.getLevelNamesMapping()[level.upper()]
    is_console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    render: list[Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                timestamp_key="time",
                # Where rich is installed, the default prints every frame's local variables: keys, content.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
        if is_console
        else [structlog.processors.dict_tracebacks, _drop_locals, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True


def is_enabled(level: str) -> bool:
    """Whether a line of *level* would be written."""
    return logging.getLogger().isEnabledFor(logging.getLevelNamesMapping()[level.upper()])


def _drop_locals(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Local variables of a traceback's frames may hold content."""
    trace: Any = event.get("exception")
    if isinstance(trace, list):
        for part in trace:
            for frame in part.get("frames", ()):
                frame.pop("locals", None)
    return event
