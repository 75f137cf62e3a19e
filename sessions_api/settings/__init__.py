"""Every setting: one frozen Struct, read from the environment once, at the start.

A bad value stops the start with the variable's name, what it was and the range;
nothing is clamped, and a misspelt name is refused with the nearest one. Only
``app.py`` and the CLI read this; parts are told what they need.
"""

from sessions_api.settings.fields import Settings
from sessions_api.settings.reader import IGNORED, VARIABLES, range_of
from sessions_api.settings.shared import shared

__all__ = ["IGNORED", "VARIABLES", "Settings", "range_of", "shared"]
