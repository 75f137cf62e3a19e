"""Whether the user that the service logs in as may do what the service does, at every primary."""

from __future__ import annotations

from sessions_api.cli.doctor.findings import Finding
from sessions_api.errors import StorageUnavailable
from sessions_api.store import Store
from sessions_api.store.inspection import Refused, Server, inspecting, refused_rights, tags_at


async def examine(store: Store, servers: list[Server]) -> list[Finding]:
    """By trial: each command once, on keys that are gone afterwards. Users are every server's own."""
    return [await _at(store, server) for server in servers if not server.is_replica and tags_at(server)]


async def _at(store: Store, server: Server) -> Finding:
    channel = f"__keyevent@{store.redis.address.database}__:expired"
    try:
        async with inspecting(server.address) as ask:
            refused = await refused_rights(ask, store.keyspace, tags_at(server)[0])
            hears = await ask.ask("SUBSCRIBE", channel)  # the last: it changes the connection
    except StorageUnavailable as error:
        return Finding(
            "warn",
            "rights",
            f"not to be seen: {error.reason}",
            costs="unknown",
            fix="look again",
            server=server.name,
        )
    if isinstance(refused, Refused):
        return Finding(
            "fail",
            "rights",
            f"scripts are refused: {refused.reason}",
            costs="nothing works",
            fix="let this user call what deploy/redis/users.acl has",
            server=server.name,
        )
    if refused:
        words = " ".join(f"+{name.lower()}" for name in refused)
        return Finding(
            "fail",
            "rights",
            f"refused are {', '.join(refused)}",
            costs="scripts fail half-way",
            fix=f"ACL SETUSER … {words}; deploy/redis/users.acl has all that is needed",
            server=server.name,
        )
    if isinstance(hears, Refused):
        return Finding(
            "warn",
            "rights",
            f"SUBSCRIBE {channel} is refused",
            costs="followers hear of warnings and ends up to 0.5 s later",
            fix=f"ACL SETUSER … +subscribe &{channel}",
            server=server.name,
        )
    return Finding("ok", "rights", "every command of the service is allowed", server=server.name)
