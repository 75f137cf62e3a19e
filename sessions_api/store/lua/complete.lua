--[[ complete: a worker's answer enters the log and ends its turn.

KEYS   the session's eleven
ARGV   sid, app, turn_id, fence, body ('' = an empty answer: nothing is stored)
REPLY  {'ok', sid, became} | {'cancelled', sid} | {'lost', sid} | expired | absent

`became` says what the end of the turn did to the session (lib/ending.lua).
Repeatable by its fence: its own earlier success is the same success. ]]
-- needs: session clock turns ending worker

local turn_id, fence, body = ARGV[3], ARGV[4], ARGV[5]

local dead = over()
if dead and dead[1] == 'absent' then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
if standing == 'cancelled' then return {'cancelled', sid} end
if standing == 'completed' then return {'ok', sid, 'kept'} end
if dead then return dead end
if standing ~= 'own' then return {'lost', sid} end
local cursor = body ~= '' and write('message', turn_id, 'complete', body) or 0
turn.answer = cursor
close(turn, 'completed')
fact('turn.completed', turn_id .. ' ' .. (cursor > 0 and turn.message_id or '-') .. ' ' .. int(cursor))
return {'ok', sid, after_turn()}
