--[[ cancel: end a turn that is queued or running; what was said so far stays.

KEYS   the session's eleven
ARGV   sid, grant, turn_id, by (user | agent)
REPLY  {'ok', sid, became, record} | {'unknown', sid} | expired | absent

Cancel and complete race here: the first wins, the other is told. Repeatable: a
turn that has ended is replied as it is. ]]
-- needs: session clock turns ending
-- turn: ARGV[3]

local turn_id, by = ARGV[3], ARGV[4]

local dead = over()
if dead and dead[1] ~= 'expired' then return dead end
local turn = turn_of(turn_id)
-- A repeat, if the first try ended the session with its turn.
if dead and not (turn and turn.state == 'cancelled' and turn.by == by) then return dead end
if not turn then return {'unknown', sid} end
local became = 'kept'
if turn.state == 'queued' or turn.state == 'running' then
  cancel(turn, by)
  if s.turn_state == 'running' and s.turn ~= turn_id then
    save()
  else
    became = after_turn()
  end
end
return {'ok', sid, became, packed[turn_id] or cmsgpack.pack(turn)}
