-- Whether an agent is there, from what its workers said last (store/attendance.py).

local presence, states = KEYS[1], KEYS[2]
local time = redis.call('TIME') -- once: on Redis 6.2 it moves within a script
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local CALM_MS = 2000

local function int(x) return string.format('%d', x) end

local function state_of(agent)
  local state, since = string.match(redis.call('HGET', states, agent) or '', '(%a+) (%d+)')
  return state or 'offline', tonumber(since or 0)
end

-- The agent's workers are looked at again, then or earlier.
local function look_at(agent, at)
  local known = redis.call('ZSCORE', presence, agent)
  if not known or at < tonumber(known) then redis.call('ZADD', presence, int(at), agent) end
end

-- Between available and busy an agent changes once in a while, whatever its
-- workers do: each change goes to every follower of each of its sessions.
local function become(agent, state)
  local was, since = state_of(agent)
  if state == was then return end
  if state ~= 'offline' and was ~= 'offline' and now < since + CALM_MS then
    return look_at(agent, since + CALM_MS)
  end
  redis.call('HSET', states, agent, state .. ' ' .. int(now))
  redis.call('HINCRBY', states, 'version', 1)
end

-- Look at all workers: the state they make, until when, and nobody kept who is gone.
local function settle(agent, workers)
  local free_ms, there_ms = 0, 0
  local all = redis.call('HGETALL', workers)
  redis.call('ZREM', presence, agent) -- frees before it writes: works when Redis is full
  for i = 1, #all, 2 do
    local until_ms, free = string.match(all[i + 1], '^(%d+) (%d)')
    until_ms = tonumber(until_ms)
    if until_ms <= now then
      redis.call('HDEL', workers, all[i])
    else
      there_ms = math.max(there_ms, until_ms)
      if free == '1' then free_ms = math.max(free_ms, until_ms) end
    end
  end
  if there_ms == 0 then return become(agent, 'offline') end
  look_at(agent, free_ms > 0 and free_ms or there_ms)
  become(agent, free_ms > 0 and 'available' or 'busy')
end
