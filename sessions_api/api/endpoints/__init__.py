"""Endpoints: parse, one call, reply. Errors fly to ``middleware.py``."""
