"""What a Redis URL leads to: one server, the primary that Sentinels name, or a Cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessions_api.store.address import Address
from sessions_api.store.cluster import Cluster
from sessions_api.store.lines import Line
from sessions_api.store.seeds import ClusterAddress, is_cluster_url
from sessions_api.store.sentinel import SentinelAddress, is_sentinel_url
from sessions_api.store.topology import Single

if TYPE_CHECKING:
    from sessions_api.store.lines import Stats
    from sessions_api.store.topology import Door, MakeLine, Topology


def door_of(url: str) -> Door:
    """Where the Redis of *url* is.

    Raises:
        SettingsError: the URL is unusable.
    """
    if is_sentinel_url(url):
        return SentinelAddress(url)
    return ClusterAddress(url) if is_cluster_url(url) else Address(url)


def topology_of(
    door: Door,
    *,
    stats: Stats,
    reply_timeout_s: float,
    patience_s: float,
    make_line: MakeLine = Line,
    name: str = "commands",
) -> Topology:
    """The servers behind *door*, each with a line that *make_line* makes and the log calls *name*.

    *patience_s*: for how long another server of a cluster may take over before calls are refused at once.
    """
    if isinstance(door, ClusterAddress):
        return Cluster(
            door,
            stats=stats,
            reply_timeout_s=reply_timeout_s,
            patience_s=patience_s,
            make_line=make_line,
            name=name,
        )
    return Single(door, stats=stats, reply_timeout_s=reply_timeout_s, make_line=make_line, name=name)
