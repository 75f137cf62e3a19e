"""The HTTP surface: parse, one call, reply."""
