--[[ attend: workers say that they are there, free or not; their agents' states follow.

KEYS   presence, states, then for each presence its agent's workers
ARGV   for each presence: agent_id, worker, ttl_ms (0 = it leaves, whoever knew of it),
       is_free ('1' | '0'), capacity (0 = as it said last), by
REPLY  {'ok'}

A worker's waits may stand at several replicas: each tells of its own, and the
worker is free while one of them says so. Costs the same however many workers an
agent has, but where one stops being free: then all are looked at, by `settle` if
they are many. Repeatable by nature. ]]
-- needs: attendance

local MANY = 100

-- What the worker's presences are called, by whatever replica.
local function names_of(workers, worker)
  local names = {}
  for _, name in ipairs(redis.call('HKEYS', workers)) do
    if string.sub(name, 1, #worker + 1) == worker .. ' ' then names[#names + 1] = name end
  end
  return names
end

local function capacity_of(workers, name)
  local known = redis.call('HGET', workers, name)
  return known and tonumber(string.match(known, '%d+$')) or 0
end

local function said_last(workers, worker, name)
  local capacity = capacity_of(workers, name)
  if capacity > 0 then return capacity end
  for _, other in ipairs(names_of(workers, worker)) do
    capacity = math.max(capacity, capacity_of(workers, other))
  end
  return capacity
end

for i = 3, #KEYS do
  local workers, at = KEYS[i], (i - 3) * 6
  local agent, worker, ttl_ms = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local free, capacity, by = ARGV[at + 4], tonumber(ARGV[at + 5]), ARGV[at + 6]
  if ttl_ms == 0 then
    local names = names_of(workers, worker)
    if #names > 0 then
      redis.call('HDEL', workers, unpack(names))
      settle(agent, workers)
    end
  else
    local name, until_ms = worker .. ' ' .. by, now + ttl_ms
    if capacity == 0 then capacity = said_last(workers, worker, name) end
    redis.call('HSET', workers, name, int(until_ms) .. ' ' .. free .. ' ' .. int(capacity))
    if redis.call('PTTL', workers) < ttl_ms then redis.call('PEXPIREAT', workers, int(until_ms)) end
    look_at(agent, until_ms)
    if free == '1' then
      become(agent, 'available')
    elseif state_of(agent) == 'offline' then
      become(agent, 'busy')
    elseif redis.call('HLEN', workers) <= MANY then
      settle(agent, workers)
    else
      look_at(agent, now)
    end
  end
end
return {'ok'}
