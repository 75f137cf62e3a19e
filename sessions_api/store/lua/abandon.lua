--[[ abandon: nobody will answer: every open turn of a session fails for good.

KEYS   the session's eleven
ARGV   sid, grant, code, message
REPLY  {'ok', sid, became, abandoned} | expired | absent

Repeatable by nature: what has failed is no longer open. ]]
-- needs: session clock turns ending

local code, message = ARGV[3], ARGV[4]

local dead = over()
if dead then return dead end
local ids = open_turns()
if #ids == 0 then return {'ok', sid, 'kept', 0} end
for _, id in ipairs(ids) do
  local turn = turn_of(id)
  if turn then
    stop(turn)
    fail(turn, code, message)
  end
end
return {'ok', sid, after_turn(), #ids}
