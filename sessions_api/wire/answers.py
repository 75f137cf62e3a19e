"""What an answer says of itself where every reader looks for it: of the type that every reader expects.

``metadata.thought`` is text, ``metadata.actions`` an array; the token counts of
``usage``, in either spelling, are numbers. Null is as good as absent, and what
else there is may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

TOKENS: Final = (
    "inputTokens",
    "outputTokens",
    "totalTokens",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
)


class Misfit(NamedTuple):
    """A member that no reader could make sense of."""

    field: str
    reason: str
    value: Any
    allowed: str


def misfits(metadata: object, usage: object) -> list[Misfit]:
    """The members of *metadata* and *usage* that are not what their readers expect."""
    told = metadata if isinstance(metadata, Mapping) else {}
    counts = usage if isinstance(usage, Mapping) else {}
    found: list[Misfit] = []
    thought, actions = told.get("thought"), told.get("actions")
    if thought is not None and not isinstance(thought, str):
        found.append(Misfit("metadata.thought", "must be a string", thought, "a string"))
    if actions is not None and not isinstance(actions, list):
        found.append(Misfit("metadata.actions", "must be an array", actions, "an array"))
    found += [
        Misfit(f"usage.{name}", "must be a number of 0 or more", counts[name], "0 or more")
        for name in TOKENS
        if counts.get(name) is not None and not _is_count(counts[name])
    ]
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
