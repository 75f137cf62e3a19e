--[[ turn: the record of one turn, also of an expired session.

KEYS   the session's four
ARGV   sid, grant, turn_id
REPLY  {'ok', sid, now, record} | {'unknown', sid, now} | absent ]]
-- needs: session
-- turn: ARGV[3]

local turn_id = ARGV[3]

local dead = over()
if dead and dead[1] ~= 'expired' then return dead end
local record = #turn_id == 36 and stored[3]
if not record then return {'unknown', sid, int(now)} end
return {'ok', sid, int(now), record}
