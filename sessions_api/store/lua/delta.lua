--[[ delta: a worker appends text to the running answer; holds the session for a lease.

KEYS   the session's eleven
ARGV   sid, grant, turn_id, fence, text, units, offset, max_units
REPLY  written | refused (lib/worker.lua) | {'gap', sid, expected}
       | {'large', sid, and the rest of written} | expired | absent

Repeatable by its offset (UTF-16 units): what is already there is not added again. ]]
-- needs: session clock turns ending worker
-- turn: ARGV[3]
-- rarely: fail after_turn refused told revive reason

local turn_id, fence, text = ARGV[3], ARGV[4], ARGV[5]
local units, offset, max_units = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local dead = over()
if dead then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
if standing == 'cancelled' then return told(turn, fence) end
if standing == 'completed' and offset + units <= turn.units then return written('ok', 'again', turn) end
if standing == 'failed' and turn.error.code == 'ANSWER_TOO_LARGE' then return written('large', 'again', turn) end
if standing ~= 'own' then return refused(turn, standing) end
if offset ~= turn.units then
  if offset + units <= turn.units then return written('ok', 'again', turn) end
  return {'gap', sid, int(turn.units)}
end
if turn.units + units > max_units then
  fail(turn, 'ANSWER_TOO_LARGE', 'The answer exceeds ' .. int(max_units) .. ' characters')
  return written('large', 'new', turn, after_turn())
end
redis.call('APPEND', draft, text)
if turn.units == 0 then fresh[#fresh + 1] = draft end
turn.units = turn.units + units
turn.index = turn.index + 1
local is_told = turn.state == 'queued' and revive(turn) -- with this delta
if turn.state == 'running' then
  hold(turn, LEASE_MS)
  if not is_told then
    publish('turn.delta', 0, 0,
      turn_id .. ' ' .. turn.message_id .. ' ' .. int(turn.index - 1) .. ' ' .. int(offset), text)
  end
end
put(turn)
warn()
arm()
save()
return written('ok', 'new', turn)
