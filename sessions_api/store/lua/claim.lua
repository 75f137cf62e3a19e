--[[ claim: a worker takes the oldest queued turn of one session.

KEYS   the session's eleven
ARGV   sid, grant, worker, fence_bits, message_id, turn_ms, max_attempts, agent_id
REPLY  {'claimed', sid, now, next, was_lapsed, record, messages, fields} | {'taken', sid, next}

The fence changes here and nowhere else. Repeatable: a repeat finds its own random
bits on the running turn and gets the same turn. `next` is another session of the
agent in this partition with work, or ''; `was_lapsed`: the attempt before this one
was never given back. What was said before is read by itself (store/pages.py). ]]
-- needs: session clock turns
-- rarely: queued_turns reason

local worker, fence_bits, message_id = ARGV[3], ARGV[4], ARGV[5]
local turn_ms, max_attempts, agent = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local FIRST_LEASE_MS = 10000

local function next_session()
  for _, member in ipairs(redis.call('ZRANGEBYLEX', ready, '[' .. agent .. ':', '(' .. agent .. ';', 'LIMIT', 0, 2)) do
    local other = string.sub(member, -36)
    if other ~= sid then return other end
  end
  return ''
end

if over() or string.lower(s.agent_id) ~= agent then return {'taken', sid, next_session()} end
local turn = s.turn ~= '' and turn_of(s.turn) or nil
local was_lapsed = 0
local again = turn and turn.state == 'running' and string.match(turn.fence, '%.(.*)$') == fence_bits
if not again then
  if not turn or turn.state ~= 'queued' or s.retry_ms > now then return {'taken', sid, next_session()} end
  dequeue(turn)
  was_lapsed = turn.lapsed and 1 or 0
  turn.state = 'running'
  turn.lapsed = nil
  turn.not_before_ms = nil
  turn.attempt = turn.attempt + 1
  turn.claims = turn.claims + 1
  turn.max_attempts = max_attempts
  turn.fence = int(turn.claims) .. '.' .. fence_bits
  turn.worker = worker
  turn.message_id = message_id
  turn.units = 0
  turn.index = 0
  turn.started_ms = now
  turn.deadline_ms = now + turn_ms
  hold(turn, FIRST_LEASE_MS)
  put(turn)
  enter_running(turn) -- first, since it can fail for want of memory
  if turn.claims > 1 then redis.call('DEL', draft) end -- of an attempt that was given back
  fact('turn.started', turn.turn_id .. ' ' .. int(turn.attempt) .. ' ' .. turn.message_id)
  warn()
  arm()
  save()
end

local messages = {}
for i, cursor in ipairs(turn.messages) do
  messages[i] = redis.call('XRANGE', log, int(cursor), int(cursor))[1]
end
return {'claimed', sid, int(now), next_session(), was_lapsed, packed[turn.turn_id] or cmsgpack.pack(turn), messages, stored}
