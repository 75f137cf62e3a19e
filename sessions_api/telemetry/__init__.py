"""Metrics and logs: what is seen from outside."""
