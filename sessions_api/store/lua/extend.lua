--[[ extend: a worker is still at it; holds the session for another lease.

KEYS   the session's eleven
ARGV   sid, grant, turn_id, fence
REPLY  written | refused (lib/worker.lua) | expired | absent

Never beyond the attempt's deadline: past it there is nothing to hold, and the worker
is told so, though its answer is welcome until the next claim. Repeatable by nature. ]]
-- needs: session clock turns ending worker
-- turn: ARGV[3]
-- rarely: refused told revive reason

local turn_id, fence = ARGV[3], ARGV[4]

local dead = over()
if dead then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
if standing == 'cancelled' then return told(turn, fence) end
if standing ~= 'own' or now >= turn.deadline_ms then return refused(turn, standing) end
if turn.state == 'queued' then revive(turn) end
hold(turn, LEASE_MS)
put(turn)
warn()
arm()
save()
return written('ok', 'new', turn)
