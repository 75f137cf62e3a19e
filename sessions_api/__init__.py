"""Persistent, stateful conversations with AI agents.

The floors, top to bottom; a part knows only what is below it (import-linter holds it)::

    cli          `sessions-api …`: dev, serve, doctor, chat, ls, show, tail; one file each
    app          the composition root: starts the parts, stops them in reverse
                 (settings: every setting; embedded: the private server of `dev`)
    api          HTTP in and out; routes.py is the whole surface
    live         followers: one tail per process, fanned out over SSE and WebSocket
    agents       hands turns to whoever answers them
    access       access keys and session tokens: who calls
    keeper       rings the sessions' alarms: warnings, expiry, lapsed leases
    store        the only place that speaks to Redis; one Lua script per transition
    wire         the public contract: Structs, problems, events
    telemetry    metrics and logs
    domain       what a session is; plain Python, the clock is always an argument
    errors       every error raised on purpose

Beside them stands sdk: what an agent's process imports. It speaks HTTP and knows none of them.

Read first: errors.py, store/keys.py, domain/timeouts.py, api/routes.py; docs/architecture.md tells the story.
"""
