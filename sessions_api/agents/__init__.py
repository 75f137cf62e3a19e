"""The dispatch of turns to agents."""
