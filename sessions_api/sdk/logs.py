"""What the worker says of itself, by the standard ``logging``.

Each record's message reads ``event name=value …``; the same names are the
record's ``extra``, for formatters that make JSON. Ids, never what was said.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("sessions_api.sdk")


def say(level: int, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
    """Log *event* with its *fields*."""
    if logger.isEnabledFor(level):
        words = " ".join((event, *(f"{name}={value}" for name, value in fields.items())))
        logger.log(level, "%s", words, exc_info=exc_info, extra={"event": event, **fields})


def show_if_nobody_does() -> None:
    """A process that set up no logging gets the worker's events on stderr, without a line per request."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("httpx2").setLevel(logging.WARNING)
