--[[ signing: the keys that session tokens are signed with; makes a new one when it is time.

KEYS   signing             hash
ARGV   new_id, new_secret, rotate_ms (make one if the newest is older; 0 = in any case),
       keep_ms (forget those that are older), is_leak ('1': forget all others, their tokens end)
REPLY  {now, id, created_ms, secret, id, created_ms, secret, …}

Any replica may call it at any time: of several that find the newest too old, the
first makes one. A repeat finds its own id, and makes none. ]]

local signing = KEYS[1]
local new_id, new_secret = ARGV[1], ARGV[2]
local rotate_ms, keep_ms, is_leak = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function int(x) return string.format('%.0f', x) end

local newest, old = 0, {}
local flat = redis.call('HGETALL', signing)
for i = 1, #flat, 2 do
  local created = tonumber(string.match(flat[i + 1], '^%d+'))
  if flat[i] == new_id then rotate_ms, is_leak = now, false end
  newest = math.max(newest, created)
  if is_leak or now - created > keep_ms then old[#old + 1] = flat[i] end
end
if #flat == 0 or now - newest >= rotate_ms then
  redis.call('HSET', signing, new_id, int(now) .. ' ' .. new_secret) -- first, since it can fail for want of memory
end
if #old > 0 then redis.call('HDEL', signing, unpack(old)) end
local reply = {int(now)}
flat = redis.call('HGETALL', signing)
for i = 1, #flat, 2 do
  reply[#reply + 1] = flat[i]
  reply[#reply + 1], reply[#reply + 2] = string.match(flat[i + 1], '^(%d+) (%S+)$')
end
return reply
