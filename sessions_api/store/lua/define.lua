--[[ define: put an agent's definition; all replicas notice by the version.

KEYS   definitions
ARGV   agent_id, definition
REPLY  {'new' | 'changed' | 'same'}

Repeatable by nature: the same definition again changes nothing. ]]

local definitions = KEYS[1]
local agent_id, definition = ARGV[1], ARGV[2]

local known = redis.call('HGET', definitions, agent_id)
if known == definition then return {'same'} end
redis.call('HSET', definitions, agent_id, definition)
redis.call('HINCRBY', definitions, 'version', 1)
return {known and 'changed' or 'new'}
