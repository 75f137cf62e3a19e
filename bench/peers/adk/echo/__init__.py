"""The agent that ``adk api_server`` finds in its folder."""

from . import agent as agent
