--[[ postpone: move a session's alarm that could not be rung ahead; it blocks nobody.

KEYS   due
ARGV   sid, delay_ms
REPLY  {'ok'} ]]

local due = KEYS[1]
local sid, delay_ms = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Frees before it writes: works when Redis is full.
if redis.call('ZREM', due, sid) == 1 then
  redis.call('ZADD', due, string.format('%.0f', now + delay_ms), sid)
end
return {'ok'}
