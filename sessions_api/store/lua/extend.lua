--[[ extend: a worker is still at it; holds the session for another lease.

KEYS   the session's eleven
ARGV   sid, app, turn_id, fence
REPLY  {'ok', sid} | {'cancelled', sid} | {'lost', sid} | expired | absent

Never beyond the attempt's deadline. Repeatable by nature. ]]
-- needs: session clock turns ending worker

local turn_id, fence = ARGV[3], ARGV[4]

local dead = over()
if dead then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
if standing == 'cancelled' then return {'cancelled', sid} end
if standing ~= 'own' then return {'lost', sid} end
revive(turn)
if turn.state == 'running' then hold(turn, LEASE_MS) end
put(turn)
warn()
arm()
save()
keep()
return {'ok', sid}
