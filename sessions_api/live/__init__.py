"""Long-lived connections: what happens to a session, told to whoever follows it."""
