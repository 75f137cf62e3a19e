--[[ alarm: do whatever is due for a session, each at most once, and set the next alarm.

KEYS   the session's eleven
ARGV   sid, grant
REPLY  {'expired' | 'warned' | 'lapsed' | 'idle', sid, lag_ms, lapse} | {'absent', sid}

The claim is the transition itself: anyone may call it at any time, on a hint, by
the sweep, or because a request found the session past its time. It begins with a
DEL, so that it works when Redis is full, and leaves `due` last: should it fail
half-way, the session still has its promise. `lapse` is {agent, turn_id, attempt,
worker, 'queued' | 'failed'} of a turn whose lease lapsed, else empty. ]]
-- needs: session clock turns ending
-- rarely: expire retry_or_fail

if s.app == '' then
  redis.call('ZREM', near, sid)
  redis.call('ZREM', due, sid)
  return {'absent', sid}
end
if s.reason ~= '' then
  redis.call('ZREM', due, sid)
  return {'idle', sid, 0, {}}
end

local running_turn = s.turn_state == 'running' and turn_of(s.turn)
local function lapse_of(became)
  return {string.lower(s.agent_id), running_turn.turn_id, int(running_turn.attempt), running_turn.worker, became}
end

if now >= end_ms() then
  local lapse = running_turn and running_turn.lease_ms <= now and lapse_of('failed') or {}
  return {'expired', sid, int(expire()), lapse}
end
redis.call('DEL', alarm)

local word, lag_ms, lapse = 'idle', 0, {}
if running_turn and s.held_until_ms <= now then
  local turn = running_turn
  word, lag_ms = 'lapsed', now - s.held_until_ms
  turn.lapsed = true
  retry_or_fail(turn, 'AGENT_TIMEOUT', 'The agent stopped answering', 0)
  if turn.state == 'failed' or now >= turn.deadline_ms then stop(turn) end -- else it may go on
  if turn.state == 'failed' and s.auto_renew == 1 then renew('turn') end
  lapse = lapse_of(turn.state)
  reckon()
elseif s.retry_ms > 0 and s.retry_ms <= now then
  s.retry_ms = 0
  reckon()
end
local late = warn()
if late then word, lag_ms = 'warned', late end
arm(true)
save()
return {word, sid, int(lag_ms), lapse}
