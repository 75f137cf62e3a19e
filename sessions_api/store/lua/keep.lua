--[[ keep: take or renew the lease of a partition.

KEYS   keeper
ARGV   replica, lease_ms (0 = give it back)
REPLY  {'kept'} | {'other', replica} | {'free'} ]]

local keeper = KEYS[1]
local replica, lease_ms = ARGV[1], tonumber(ARGV[2])

local holder = redis.call('GET', keeper)
if holder and holder ~= replica then return {'other', holder} end
if holder and lease_ms > 0 then
  redis.call('PEXPIRE', keeper, lease_ms) -- a key that is deleted in a slot on its way cannot be set here again
  return {'kept'}
end
redis.call('DEL', keeper) -- frees before it writes: works when Redis is full
if lease_ms == 0 then return {'free'} end
redis.call('SET', keeper, replica, 'PX', lease_ms)
return {'kept'}
