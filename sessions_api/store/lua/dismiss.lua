--[[ dismiss: nothing of an agent's attendance is kept.

KEYS   presence, states, workers
ARGV   agent_id
REPLY  {'ok'}

Repeatable by nature. ]]

local presence, states, workers = KEYS[1], KEYS[2], KEYS[3]
local agent_id = ARGV[1]

redis.call('DEL', workers)
redis.call('ZREM', presence, agent_id)
if redis.call('HDEL', states, agent_id) == 1 then redis.call('HINCRBY', states, 'version', 1) end
return {'ok'}
