--[[ due: the sessions of a partition whose alarm has come, oldest first.

KEYS   due
ARGV   limit
REPLY  {now, next (score of the first that is not due, '' = none), sids} ]]

local due = KEYS[1]
local limit = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

local sids = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, limit)
local first = redis.call('ZRANGEBYSCORE', due, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {now, first[2] or '', sids}
