--[[ take: requests are counted against one limit, as many of them as it admits.

KEYS   limit
ARGV   quota, window_ms, count (how many requests; 0 only looks, -1 gives one back)
REPLY  {'ok' | 'limited', admitted, left, retry_after_ms, reset_ms}

'limited' says that fewer than count were admitted. retry_after_ms: until one more
is, 0 if one is now. reset_ms: until the whole quota is there again, as text with
three digits behind the point, so that a copy of it does not drift.

A repeat after a lost reply may count the same requests once more, or give the same
one back. It errs for a window at most: to know each call again would cost more
than to count it. ]]
-- needs: limits

local key = KEYS[1]
local quota, window_ms, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000

local limit = limit_of(key, now, quota, window_ms)
local admitted = math.min(count, left_of(limit))
if admitted ~= 0 then charge(limit, now, admitted) end
return {
  admitted == count and 'ok' or 'limited', admitted, left_of(limit), wait_of(limit),
  string.format('%.3f', limit.ahead_ms),
}
