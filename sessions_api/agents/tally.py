"""Counts what answers say of themselves: tokens used, actions taken."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sessions_api.domain.turns import Answer
from sessions_api.telemetry import metrics

_decode = msgspec.json.Decoder().decode

TOKENS: Final = {
    "inputTokens": "input",
    "prompt_tokens": "input",
    "outputTokens": "output",
    "completion_tokens": "output",
}
"""Members of ``usage`` that are counted, and as which kind; of two of a kind the first that is there."""


def count_answer(agent: str, answer: Answer) -> dict[str, int]:
    """Count a completed answer's usage and actions, and return the tokens; *agent* is a metric's label."""
    counted = {} if answer.usage is None else _tokens(_decode(answer.usage))
    for kind, tokens in counted.items():
        metrics.TOKENS.of(agent, kind).inc(tokens)
    if b'"actions"' in answer.metadata:
        actions = _decode(answer.metadata).get("actions")
        if isinstance(actions, list) and actions:
            metrics.AGENT_ACTIONS.of(agent).inc(len(actions))
    return counted


def _tokens(usage: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, kind in TOKENS.items():
        tokens = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
            found.setdefault(kind, tokens)
    return found
