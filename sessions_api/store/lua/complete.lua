--[[ complete: a worker's answer enters the log and ends its turn.

KEYS   the session's eleven
ARGV   sid, grant, turn_id, fence, body ('' = an empty answer: nothing is stored), tail, is_more,
       last, units, offset
REPLY  written | refused (lib/worker.lua) | {'gap', sid, expected} | expired | absent

The body comes without the message's id and author. With a tail the answer's content
is what was streamed, put between body and tail; if that was nothing, the answer is
empty, and stored only where there is more to it ('1'). `last` is text at the end of an
answer given whole that was not streamed yet: followers hear it as a delta. Repeatable by
its fence: its own earlier success is the same success. ]]
-- needs: session clock turns ending worker
-- turn: ARGV[3]
-- rarely: expire refused told dequeue enter_ready queued_turns reason

local turn_id, fence, body, tail, is_more = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7] == '1'
local last, units, offset = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])

local dead = over()
if dead and dead[1] ~= 'expired' then return dead end
local turn = turn_of(turn_id)
local standing = standing_of(turn, fence)
if standing == 'cancelled' then return told(turn, fence) end
if standing == 'completed' then return written('ok', 'again', turn) end
if dead then return dead end
if standing ~= 'own' then return refused(turn, standing) end
if tail ~= '' then
  local text = redis.call('GET', draft) or ''
  body = (text ~= '' or is_more) and body .. cjson.encode(text) .. tail or ''
end
if units > 0 and turn.state == 'running' then -- of one that lapsed, followers were told to forget the text
  if offset ~= turn.units then return {'gap', sid, int(turn.units)} end
  publish('turn.delta', 0, 0, turn_id .. ' ' .. turn.message_id .. ' ' .. int(turn.index) .. ' ' .. int(offset), last)
  turn.units = turn.units + units
end
local cursor = body ~= '' and write('message', turn_id, 'complete', authored(turn, body)) or 0
turn.answer = cursor
close(turn, 'completed')
fact('turn.completed', turn_id .. ' ' .. (cursor > 0 and turn.message_id or '-') .. ' ' .. int(cursor))
return written('ok', 'new', turn, after_turn())
