"""What the service says of itself to whoever watches over it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Alive(msgspec.Struct):
    """The process runs."""

    status: Literal["alive"]


class Ready(msgspec.Struct):
    """This replica can serve."""

    status: Literal["ready"]
