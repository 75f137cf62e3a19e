"""Workers that come and go, and time that passes for all agents at once."""

from __future__ import annotations

from sessions_api.domain.ids import AgentId
from sessions_api.store import Store
from sessions_api.store.attendance import Presence
from sessions_api.store.connection import Script
from tests.support.stores import AGENT

OTHER_AGENT = AgentId("b" + AGENT[1:])
JUST_NOW = -30_000
"""To :func:`pass_`: what changed is as recent as can be, however long this machine takes."""

# Time passes for all agents, as AGE in support/stores.py lets it pass for a session.
LATER = Script(
    "later",
    """
local presence, states = KEYS[1], KEYS[2]
local by = tonumber(ARGV[1])
local function int(x) return string.format('%.0f', x) end
local looks = redis.call('ZRANGE', presence, 0, -1, 'WITHSCORES')
for i = 1, #looks, 2 do redis.call('ZADD', presence, int(looks[i + 1] - by), looks[i]) end
local all = redis.call('HGETALL', states)
for i = 1, #all, 2 do
  local state, since = string.match(all[i + 1], '(%a+) (%d+)')
  if state then redis.call('HSET', states, all[i], state .. ' ' .. int(since - by)) end
end
for i = 3, #KEYS do
  local workers = redis.call('HGETALL', KEYS[i])
  for j = 1, #workers, 2 do
    local until_ms, rest = string.match(workers[j + 1], '^(%d+)(.*)$')
    redis.call('HSET', KEYS[i], workers[j], int(until_ms - by) .. rest)
  end
end
return {'ok'}
""",
)


async def pass_(store: Store, by_ms: int) -> None:
    """Let *by_ms* pass, at once."""
    keyspace = store.keyspace
    keys = [keyspace.presence, keyspace.states, keyspace.workers(AGENT), keyspace.workers(OTHER_AGENT)]
    await store.redis.script(LATER, keys, (by_ms,))


def presence(
    worker: str = "w",
    *,
    agent: AgentId = AGENT,
    free: bool = True,
    ttl_ms: int = 60_000,
    capacity: int = 1,
    by: str = "",
) -> Presence:
    return Presence(agent, worker, capacity, ttl_ms, is_free=free, by=by)


async def present(store: Store, worker: str = "w", *, free: bool = True, ttl_ms: int = 60_000) -> None:
    await store.attendance.attend([presence(worker, free=free, ttl_ms=ttl_ms)])


async def state_of(store: Store, agent: AgentId = AGENT) -> str:
    """By Redis, and by every replica after its next look."""
    now = await store.attendance.confirm(agent)
    other = Store(store.redis, store.keyspace)
    await other.attendance.refresh()
    assert other.attendance.state(agent) == now
    return now.state
