--[[ end: erase a session, live or expired, with everything it holds.

KEYS   the session's eleven
ARGV   sid, grant
REPLY  {'ok', sid} | {'absent', sid}

Afterwards nothing says it existed. Its followers are told, its turns are
cancelled with it. Repeatable: a repeat finds nothing, and the store, which knows
that it repeats, calls that success. ]]
-- needs: session clock turns ending

local stranger = refused_by_grant()
if stranger then return stranger end
local ids = open_turns()
leave_indexes()
if s.turn_state == 'running' then
  leave_running()
  hint(sid .. ' ' .. s.turn)
end
redis.call('ZREM', due, sid)
redis.call('DEL', session, alarm, log, draft)
for _, id in ipairs(ids) do
  fact('turn.cancelled', id .. ' -', '{"turnId":"' .. id .. '","by":"delete"}')
end
fact('session.ended')
tell()
return {'ok', sid}
