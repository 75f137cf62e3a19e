--[[ undefine: forget an agent's definition; all replicas notice by the version.

KEYS   definitions
ARGV   agent_id
REPLY  {'ok' | 'unknown'}

Repeatable: a repeat finds nothing, and the store, which knows that it repeats,
calls that success. ]]

local definitions = KEYS[1]
local agent_id = ARGV[1]

if redis.call('HDEL', definitions, agent_id) == 0 then return {'unknown'} end
redis.call('HINCRBY', definitions, 'version', 1)
return {'ok'}
