"""Turns and who answers them: workers at the desk, and agents that the dispatcher calls."""
