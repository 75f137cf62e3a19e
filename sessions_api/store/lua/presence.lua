--[[ presence: a replica lives (or, with 0, says goodbye); who else does?

KEYS   replicas
ARGV   replica, ttl_ms
REPLY  replicas alive, in order ]]

local replicas = KEYS[1]
local replica, ttl_ms = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

redis.call('ZREMRANGEBYSCORE', replicas, '-inf', string.format('%.0f', now))
if ttl_ms == 0 then
  redis.call('ZREM', replicas, replica)
else
  redis.call('ZADD', replicas, string.format('%.0f', now + ttl_ms), replica)
end
local alive = redis.call('ZRANGE', replicas, 0, -1)
table.sort(alive)
return alive
