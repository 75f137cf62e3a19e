-- The session's time: TTLs, the alarm, warnings, renewal; the policy of
-- domain/timeouts.py with Redis's clock. And what is told to followers.

local function publish(kind, cursor, prev, args, payload)
  payload = payload or ''
  local at = #outbox
  outbox[at + 1] = string.format('%s %d %d %d %d %d %s\n', kind, cursor, prev, s.rev, now, #payload, args)
  outbox[at + 2], outbox[at + 3] = payload, '\n'
end

-- A live-only fact: whoever was away finds another rev and reads the session.
local function fact(kind, args, payload)
  s.rev = s.rev + 1
  publish(kind, 0, 0, args or '', payload)
end

local function warning_ms()
  if s.held_until_ms > now then
    local instant = cap_ms() - s.warning_ms
    return s.warned_ms < instant and instant or nil
  end
  return s.warned_ms == 0 and s.expires_ms - s.warning_ms or nil
end

-- Both are rewritten only when the next instant became earlier: an alarm that comes early
-- finds nothing due and re-arms, which costs less than two writes per renewal. A lease
-- has its promise and no hint: most turns end long before it does, and `due` is all that
-- has to be put back then.
local function arm(exact)
  local at = end_ms()
  local warning = warning_ms()
  if warning and warning < at then at = warning end
  if s.retry_ms > 0 and s.retry_ms < at then at = s.retry_ms end
  if at <= now then at = now + 1 end
  if exact or s.hint_ms == 0 or at < s.hint_ms then
    s.hint_ms = at
    redis.call('SET', alarm, '', 'PXAT', int(at))
  end
  at = s.hint_ms
  if s.held_until_ms > 0 and s.held_until_ms < at then at = math.max(s.held_until_ms, now + 1) end
  if exact or s.alarm_ms == 0 or at < s.alarm_ms or (at > s.alarm_ms and s.held_until_ms == 0) then
    s.alarm_ms = at
    redis.call('ZADD', due, int(at), sid)
  end
end

-- Warn once per approach; returns how late, or nil if there is nothing to warn of.
local function warn()
  local instant = warning_ms()
  if not instant or now < instant or now >= end_ms() then return nil end
  local deadline = instant + s.warning_ms
  s.warned_ms = now
  redis.call('ZADD', near, int(deadline), sid)
  fact('session.expiring', int(deadline) .. ' ' .. (deadline >= cap_ms() and 'max_duration' or 'timeout'))
  return now - instant
end

-- A new deadline that puts now before its warning takes the warning back.
local function unwarn()
  if s.warned_ms > 0 and now < s.expires_ms - s.warning_ms then
    s.warned_ms = 0
    redis.call('ZREM', near, sid)
  elseif s.warned_ms > 0 then
    redis.call('ZADD', near, int(s.expires_ms), sid)
  end
end

-- Restart the idle clock; whether the cap let it. A second restart within one
-- millisecond counts, though the deadline it sets is the one that stands.
local function renew(by)
  local deadline = math.min(now + s.timeout_ms, cap_ms())
  s.last_renewal_ms = now
  if deadline < s.expires_ms or s.expires_ms >= cap_ms() then return false end
  s.expires_ms = deadline
  s.renewals = s.renewals + 1
  unwarn()
  fact('session.renewed', int(deadline) .. ' ' .. int(s.renewals) .. ' ' .. by)
  return true
end

-- The session keeps its last four ops with their outcomes, so each is repeatable.
local function outcome_of(op)
  for known, word in string.gmatch(s.ops, '(%S+)=(%S+)') do
    if known == op then return word end
  end
  return nil
end

local function remember(op, word)
  local ops = {op .. '=' .. word}
  for known in string.gmatch(s.ops, '%S+') do
    if #ops < 4 then ops[#ops + 1] = known end
  end
  s.ops = table.concat(ops, ' ')
end
