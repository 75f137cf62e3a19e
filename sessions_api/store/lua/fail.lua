--[[ fail: a worker gives its attempt up; another follows after a pause, or none.

KEYS   the session's eleven
ARGV   sid, app, turn_id, fence, how ('retry' | 'final' | 'release'), code, message
REPLY  {'ok', sid, became} | {'cancelled', sid} | {'lost', sid} | expired | absent

'release' hands the turn back at once and does not count the attempt. Repeatable
by its fence: what this attempt already gave up is given up. ]]
-- needs: session clock turns ending worker

local turn_id, fence, how, code, message = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local dead = over()
if dead and dead[1] == 'absent' then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
-- A repeat, if the first try ended the session with its turn.
if dead and standing == 'failed' and turn.error.code == code then return {'ok', sid, 'kept'} end
if dead then return dead end
if standing == 'cancelled' then return {'cancelled', sid} end
if standing == 'queued' or standing == 'failed' then return {'ok', sid, 'kept'} end
if standing ~= 'own' then return {'lost', sid} end
if turn.state == 'queued' then -- lapsed: its own still, so as if it were running
  dequeue(turn)
  turn.state = 'running'
  turn.lapsed = nil
end
if how == 'release' then
  turn.attempt = turn.attempt - 1
  requeue(turn, 0)
elseif how == 'retry' then
  retry_or_fail(turn, code, message)
else
  fail(turn, code, message)
end
if turn.state == 'failed' then return {'ok', sid, after_turn()} end
local became = 'kept'
if now >= end_ms() and s.auto_renew == 1 and renew('turn') then became = 'renewed' end
if now >= end_ms() then
  set('expires_ms', now) -- it took effect when the hold ended
  expire()
  return {'ok', sid, 'expired'}
end
reckon(nil)
if warn() then became = 'warned' end
arm()
save()
keep()
return {'ok', sid, became}
