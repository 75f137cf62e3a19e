--[[ used: access keys were used, about now.

KEYS   key-uses            hash
ARGV   key ids
REPLY  {'ok'} ]]

local key_uses = KEYS[1]
local time = redis.call('TIME')
local args = {}
for _, id in ipairs(ARGV) do
  args[#args + 1] = id
  args[#args + 1] = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end
redis.call('HSET', key_uses, unpack(args))
return {'ok'}
