--[[ fail: a worker gives its attempt up; another follows after a pause, or none.

KEYS   the session's eleven
ARGV   sid, grant, turn_id, fence, how ('retry' | 'final' | 'release'), code, message, pause_ms
REPLY  written | refused (lib/worker.lua) | expired | absent

The pause is the longer of the backoff and pause_ms, a minute at most. 'release'
hands the turn back at once and does not count the attempt. Repeatable
by its fence: what this attempt already gave up is given up. ]]
-- needs: session clock turns ending worker
-- turn: ARGV[3]

local turn_id, fence, how, code, message = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local pause_ms = tonumber(ARGV[8])

local dead = over()
if dead and dead[1] ~= 'expired' then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
-- A repeat, if the first try ended the session with its turn.
if dead and standing == 'failed' and turn.error.code == code then return written('ok', 'again', turn) end
if dead then return dead end
if standing == 'cancelled' then return told(turn, fence) end
if standing == 'queued' or standing == 'failed' then return written('ok', 'again', turn) end
if standing ~= 'own' then return refused(turn, standing) end
if turn.state == 'queued' then -- lapsed: its own still, so as if it were running
  dequeue(turn)
  turn.state = 'running'
  turn.lapsed = nil
end
if how == 'release' then
  turn.attempt = turn.attempt - 1
  requeue(turn, 0)
elseif how == 'retry' then
  retry_or_fail(turn, code, message, pause_ms)
else
  fail(turn, code, message)
end
if turn.state == 'failed' then return written('ok', 'new', turn, after_turn()) end
local became = 'kept'
if now >= end_ms() and s.auto_renew == 1 and renew('turn') then became = 'renewed' end
if now >= end_ms() then
  s.expires_ms = now -- it took effect when the hold ended
  expire()
  return written('ok', 'new', turn, 'expired')
end
reckon()
if warn() then became = 'warned' end
arm()
save()
return written('ok', 'new', turn, became)
