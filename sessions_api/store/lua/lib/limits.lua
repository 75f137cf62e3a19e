-- Limits on how often (domain/limits.py). Each is one instant in one key: when the
-- whole quota is there again. A request moves it on by `window / quota`, and is
-- refused if that took it further than a window ahead. All limits of a request are
-- read before one is charged: what is refused costs nothing.
--
-- An instant further ahead than a window (the clock was set back, the operator
-- shortened the window) is made a window: nobody is locked out for longer. That is
-- the one write that reading may do.
--
-- The key holds milliseconds with nine digits behind the point, worked out apart
-- from those before it: a double of today's instant has no room for more than
-- three, and with them 700,000 a minute would come out 2,000 a minute short.

local ROUNDED_MS = 0.001 -- more than rounding takes from the last request of a quota

local function keep_limit(limit, now)
  local key = limit.key
  if limit.ahead_ms == 0 then
    redis.call('DEL', key)
    return
  end
  local part = now - math.floor(now) + limit.ahead_ms
  local whole = math.floor(part)
  local instant = string.format('%.0f.%09d', math.floor(now) + whole, math.floor((part - whole) * 1e9))
  redis.call('SET', key, instant, 'PX', string.format('%.0f', math.ceil(limit.ahead_ms)))
end

local function limit_of(key, now, quota, window_ms)
  local limit = {key = key, quota = quota, window_ms = window_ms, ahead_ms = 0}
  local whole, part = string.match(redis.call('GET', key) or '', '^(%d+)(%.%d+)$')
  if whole then limit.ahead_ms = math.max(0, tonumber(whole) - now + tonumber(part)) end
  if limit.ahead_ms > window_ms then
    limit.ahead_ms = window_ms
    keep_limit(limit, now) -- or it would be as far ahead at the next request
  end
  return limit
end

-- How many more are admitted now.
local function left_of(limit)
  local free_ms = limit.window_ms - limit.ahead_ms + ROUNDED_MS
  return math.max(0, math.min(math.floor(free_ms * limit.quota / limit.window_ms), limit.quota))
end

-- For how long none is; 0 if one is.
local function wait_of(limit)
  if left_of(limit) > 0 then return 0 end
  return math.ceil(limit.ahead_ms + limit.window_ms / limit.quota - limit.window_ms)
end

-- A count below 0 gives back.
local function charge(limit, now, count)
  limit.ahead_ms = math.max(0, limit.ahead_ms + count * limit.window_ms / limit.quota)
  keep_limit(limit, now)
end

-- The limits that KEYS ends with, from first_key on; ARGV has quota and window_ms
-- of each, from first_arg on.
local function read_limits(now, first_key, first_arg)
  local limits = {}
  for i = 0, #KEYS - first_key do
    local at = first_arg + 2 * i
    limits[i + 1] = limit_of(KEYS[first_key + i], now, tonumber(ARGV[at]), tonumber(ARGV[at + 1]))
  end
  return limits
end

-- Which of the limits refuses one more request, from 1, and for how many
-- milliseconds; of several the one that does so longest. nil if none does.
local function refusing(limits)
  local index, longest_ms = nil, 0
  for i, limit in ipairs(limits) do
    local wait_ms = wait_of(limit)
    if wait_ms > longest_ms then index, longest_ms = i, wait_ms end
  end
  return index, longest_ms
end

-- Counts a request against each, and says how they stand: left, reset_ms, left, reset_ms ...
local function charge_all(limits, now)
  local standings = {}
  for _, limit in ipairs(limits) do
    charge(limit, now, 1)
    standings[#standings + 1] = left_of(limit)
    standings[#standings + 1] = math.ceil(limit.ahead_ms)
  end
  return standings
end
