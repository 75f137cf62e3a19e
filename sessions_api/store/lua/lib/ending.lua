-- How a session ends: its turns first, then its own event, then its tombstone.

local function leave_indexes()
  if s.warned_ms > 0 then redis.call('ZREM', near, sid) end
  local tail = ':' .. int(math.max(s.created_ms, s.listed_ms)) .. ':' .. sid
  redis.call('ZREM', users, s.app .. ':' .. string.lower(s.user_id) .. tail)
  redis.call('ZREM', agents, s.app .. ':' .. string.lower(s.agent_id) .. tail)
  leave_ready()
end

local function open_turns()
  local ids = queued_turns()
  if s.turn_state == 'running' then table.insert(ids, 1, s.turn) end
  return ids
end

-- At its instant, whoever notices: settle everything, keep the tombstone and the
-- log for the retention. Returns how late.
local function expire()
  local ended, why = end_ms(), reason()
  redis.call('DEL', alarm) -- frees before it writes: works when Redis is full
  leave_indexes()
  for _, id in ipairs(open_turns()) do
    local turn = turn_of(id)
    if turn then
      stop(turn)
      fail(turn, 'SESSION_EXPIRED', 'The session expired before the turn ended')
    end
  end
  s.expires_ms = ended
  s.reason = why
  fact('session.expired', int(ended) .. ' ' .. why)
  -- What a tombstone does not have.
  s.held_until_ms, s.warned_ms, s.ops, s.turn, s.turn_state, s.queue = 0, 0, '', '', '', ''
  s.queued, s.queued_bytes, s.retry_ms, s.ready_ms, s.alarm_ms, s.hint_ms = 0, 0, 0, 0, 0, 0
  s.log_bytes, s.listed_ms, s.ended_turns = 0, 0, 0
  save()
  redis.call('ZREM', due, sid) -- last: what fails half-way is swept again
  return now - ended
end

-- After a turn ended: the idle clock restarts, the next turn becomes ready, and a
-- session that only the turn kept alive ends with it. Returns what became of it:
-- 'expired', 'warned', 'renewed' or 'kept'.
local function after_turn()
  local word = s.auto_renew == 1 and renew('turn') and 'renewed' or 'kept'
  if now >= end_ms() then
    s.expires_ms = now -- it took effect when the hold ended
    expire()
    return 'expired'
  end
  reckon()
  if warn() then word = 'warned' end
  arm()
  save()
  return word
end
