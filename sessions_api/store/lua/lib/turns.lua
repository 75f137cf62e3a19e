-- Turns and the log. A turn's record is a MessagePack map (domain/turns.py), a field
-- of the session's hash named by its id. Beside it stand the ids of the last turns that
-- ended, a ring: its places are '0' to '49', and what has left it is forgotten.
-- `s.queue` has the ids of the queued ones, oldest first.

local ENDED_KEPT = 50
local MAX_TRACES = 8
local MAX_ENTRIES, MAX_BYTES, ROOM = 10000, 8388608, 16
local LEAST_BYTES = 13 -- of an entry's body: {"by":"user"}
local BACKOFF_MS = {1000, 5000}
local LONGEST_PAUSE_MS = 60000
local LEASE_MS = 30000

-- What changes in the hash is written at once, by save().
local records, places, unsaved, packed = {}, {}, {}, {}

local function turn_of(id)
  if records[id] then return records[id] end
  if #id ~= 36 then return nil end -- another field's name
  local record = id == asked and stored[3] or id ~= asked and redis.call('HGET', session, id)
  return record and cmsgpack.unpack(record) or nil
end

local function put(turn)
  records[turn.turn_id] = turn
  unsaved[turn.turn_id] = true
end

add_fields = function(args)
  for name in pairs(unsaved) do
    args[#args + 1] = name
    packed[name] = places[name] or cmsgpack.pack(records[name])
    args[#args + 1] = packed[name]
  end
  unsaved = {}
end

local function queued_turns()
  local ids = {}
  for id in string.gmatch(s.queue, '%S+') do ids[#ids + 1] = id end
  return ids
end

-- Where the requests stood that brought its messages (domain/traces.py); the first is whose
-- trace the answer belongs to.
local function carry(turn, traces)
  if not traces then return end
  turn.traces = turn.traces or {}
  for _, trace in ipairs(traces) do
    if #turn.traces < MAX_TRACES then turn.traces[#turn.traces + 1] = trace end
  end
end

-- Append to the log and tell followers; the cursor is the entry's id, its time,
-- and the position in every transport, so it never repeats and never goes back.
-- An entry is {'prev', cursor before it, kind, body}, the body what callers see, but
-- for what follows from the cursor.
local function write(kind, turn_id, status, body)
  local front = turn_id ~= '' and '{"turnId":"' .. turn_id .. '",' or '{'
  if status ~= '' then front = front .. '"status":"' .. status .. '",' end
  body = front .. string.sub(body, 2)
  local prev = s.cursor
  local cursor = math.max(now, prev + 1)
  redis.call('XADD', log, int(cursor) .. '-0', 'prev', int(prev), kind, body)
  if prev == 0 then fresh[#fresh + 1] = log end
  s.cursor = cursor
  s.log_bytes = s.log_bytes + #body
  publish(kind == 'message' and 'message.created' or kind, cursor, prev,
    (turn_id ~= '' and turn_id or '-') .. ' ' .. (status ~= '' and status or '-'), body)
  return cursor
end

-- Only up to the oldest unanswered message: what an agent still has to read stays. A log with
-- too many makes room for some at a time: to find its oldest entry takes as long as the rest.
local function trim()
  if s.log_bytes <= MAX_ENTRIES * LEAST_BYTES then return end
  local too_many = redis.call('XLEN', log) - MAX_ENTRIES
  if s.log_bytes <= MAX_BYTES and too_many <= 0 then return end
  local oldest = s.cursor
  local running_or_next = s.turn ~= '' and turn_of(s.turn)
  if running_or_next then oldest = running_or_next.messages[1] end
  local going = too_many > 0 and too_many + ROOM - 1 or 0
  while s.log_bytes > MAX_BYTES or going > 0 do
    local entries, ids = redis.call('XRANGE', log, '-', int(oldest - 1), 'COUNT', math.max(going, 1)), {}
    if #entries == 0 then return end
    for i, entry in ipairs(entries) do
      ids[i] = entry[1]
      s.log_bytes = s.log_bytes - #entry[2][4]
    end
    redis.call('XDEL', log, unpack(ids))
    going = going - #ids
  end
end

-- To whoever serves the agent: one word has work, two words name a turn to stop.
local function hint(words)
  local prefix, agent = string.match(live, '^(.-)live:{'), string.lower(s.agent_id)
  redis.call('PUBLISH', prefix .. 'wake:{' .. agent .. '}', words)
end

-- A turn ends by another hand than its worker's, who would learn of it at its next write only.
local function stop(turn)
  if turn.state == 'running' or turn.lapsed then hint(sid .. ' ' .. turn.turn_id) end
end

local function leave_running()
  redis.call('ZREM', running, string.lower(s.agent_id) .. ':' .. sid)
end

local function leave_ready()
  if s.ready_ms > 0 then
    redis.call('ZREM', ready, string.lower(s.agent_id) .. ':' .. int(s.ready_ms) .. ':' .. sid)
    s.ready_ms = 0
  end
end

local function enter_ready()
  if s.ready_ms == 0 then
    s.ready_ms = now
    redis.call('ZADD', ready, 0, string.lower(s.agent_id) .. ':' .. int(now) .. ':' .. sid)
  end
  hint(sid)
end

-- A turn is taken: it is what the session is at.
local function enter_running(turn)
  redis.call('ZADD', running, 0, string.lower(s.agent_id) .. ':' .. sid)
  s.turn = turn.turn_id
  s.turn_state = 'running'
  leave_ready()
end

-- No turn runs: what is next is the oldest queued one.
local function reckon()
  local first = string.match(s.queue, '%S+')
  s.turn = first or ''
  s.turn_state = first and 'queued' or ''
  if first and s.retry_ms <= now then enter_ready() else leave_ready() end
end

local function enqueue(turn, at_front)
  local first, second = s.queue, turn.turn_id
  if at_front then first, second = second, first end
  s.queue = first .. (s.queue ~= '' and ' ' or '') .. second
  s.queued = s.queued + #turn.messages
  s.queued_bytes = s.queued_bytes + turn.bytes
end

local function dequeue(turn)
  local rest = ''
  if s.queue ~= turn.turn_id then
    for _, id in ipairs(queued_turns()) do
      if id ~= turn.turn_id then rest = rest .. (rest ~= '' and ' ' or '') .. id end
    end
  end
  s.queue = rest
  s.queued = s.queued - #turn.messages
  s.queued_bytes = s.queued_bytes - turn.bytes
  if s.turn == turn.turn_id then s.retry_ms = 0 end -- the pause is that of the first in the queue
end

local function hold(turn, lease_ms)
  turn.lease_ms = math.min(now + lease_ms, turn.deadline_ms)
  s.held_until_ms = math.min(turn.lease_ms, cap_ms())
end

-- Take an open turn out of queue or hands, into its end; the caller says what it was.
local function close(turn, state)
  if turn.state == 'queued' then
    dequeue(turn)
  else
    s.held_until_ms = 0
    leave_running()
  end
  if s.turn == turn.turn_id then -- whose draft it is, running or lapsed
    redis.call('DEL', draft)
    s.turn = ''
    s.turn_state = ''
  end
  turn.state = state
  turn.traces = nil
  turn.ended_ms = now
  put(turn)
  local place = int(s.ended_turns % ENDED_KEPT)
  if s.ended_turns >= ENDED_KEPT then
    local forgotten = places[place] or redis.call('HGET', session, place)
    if forgotten then
      redis.call('HDEL', session, forgotten)
      records[forgotten], unsaved[forgotten] = nil, nil
    end
  end
  places[place] = turn.turn_id
  unsaved[place] = true
  s.ended_turns = s.ended_turns + 1
end

-- Failed for good: in the log, so that whoever waits or comes later is told.
local function fail(turn, code, message)
  turn.error = {code = code, message = message}
  close(turn, 'failed')
  write('turn.failed', turn.turn_id, '',
    cjson.encode({code = code, message = message, attempts = turn.attempt}))
end

-- Back to the front of the queue, for another attempt; what it said is no longer the answer.
local function requeue(turn, backoff_ms)
  turn.state = 'queued'
  turn.lease_ms = 0
  turn.not_before_ms = backoff_ms > 0 and now + backoff_ms or nil
  s.held_until_ms = 0
  leave_running()
  enqueue(turn, true)
  s.retry_ms = turn.not_before_ms or 0
  put(turn)
  fact('turn.queued', turn.turn_id)
end

local function retry_or_fail(turn, code, message, pause_ms)
  if turn.attempt >= turn.max_attempts then return fail(turn, code, message) end
  local backoff_ms = BACKOFF_MS[turn.attempt] or BACKOFF_MS[#BACKOFF_MS]
  requeue(turn, math.min(math.max(backoff_ms, pause_ms), LONGEST_PAUSE_MS))
end

-- The worker's replica knows neither without a read: an answer's body comes without them.
local function authored(turn, body)
  return '{"id":"' .. turn.message_id .. '","authorId":"' .. s.agent_id .. '",' .. string.sub(body, 2)
end

-- What was said so far stays in the log as a message of status "cancelled".
local function cancel(turn, by, superseded_by)
  local text = turn.state == 'running' and redis.call('GET', draft) or false
  redis.call('HDEL', session, '') -- deletes nothing, but begins as what frees: works when Redis is full
  stop(turn)
  turn.by = by
  turn.superseded_by = superseded_by
  close(turn, 'cancelled')
  if text and text ~= '' then
    turn.answer = write('message', turn.turn_id, 'cancelled',
      authored(turn, '{"content":' .. cjson.encode(text) .. ',"isAgent":true,"role":"agent","metadata":{}}'))
    put(turn)
  end
  write('turn.cancelled', turn.turn_id, '', superseded_by
    and '{"by":"' .. by .. '","supersededBy":"' .. superseded_by .. '"}' or '{"by":"' .. by .. '"}')
end
