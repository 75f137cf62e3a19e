--[[ presence: a replica lives (or, with 0, says goodbye); who else does, and as what?

KEYS   replicas, told, settings
ARGV   replica, ttl_ms, keeps (1 or 0), says (version and schema), digest (of its settings),
       text (those settings, to be stored under the digest; '' = they should be there)
REPLY  {'known' | 'unknown' (whether the digest's text is stored), keepers alive, told}

Keepers alive are in order; told is replica, keeps, says, digest for each replica alive.
A release that knows of keepers alone stands among them and is not told of. Frees before
it writes: works when Redis is full. ]]

local replicas, told, settings = KEYS[1], KEYS[2], KEYS[3]
local replica, ttl_ms, keeps = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local says, digest, text = ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = string.format('%.0f', now + ttl_ms)

redis.call('ZREMRANGEBYSCORE', replicas, '-inf', string.format('%.0f', now))
if ttl_ms == 0 then
  redis.call('ZREM', replicas, replica)
  redis.call('HDEL', told, replica)
else
  if keeps == '1' then redis.call('ZADD', replicas, until_ms, replica) end
  redis.call('HSET', told, replica, until_ms .. ' ' .. keeps .. ' ' .. says .. ' ' .. digest)
end

local alive, used = {}, {}
local all = redis.call('HGETALL', told)
for i = 1, #all, 2 do
  local ends, its_keeps, its_says, its_digest = string.match(all[i + 1], '^(%d+) (%d) (.*) (%x+)$')
  if ends and tonumber(ends) > now then
    for _, word in ipairs({all[i], its_keeps, its_says, its_digest}) do alive[#alive + 1] = word end
    used[its_digest] = true
  else
    redis.call('HDEL', told, all[i])
  end
end

if text ~= '' and used[digest] then redis.call('HSET', settings, digest, text) end
local is_known = false
for _, stored in ipairs(redis.call('HKEYS', settings)) do
  if not used[stored] then redis.call('HDEL', settings, stored) end
  is_known = is_known or stored == digest
end

local keepers = redis.call('ZRANGE', replicas, 0, -1)
table.sort(keepers)
return {is_known and 'known' or 'unknown', keepers, alive}
