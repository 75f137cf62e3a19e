-- Turns and the log. A turn's record is JSON (domain/turns.py) in the hash
-- `turns`, beside `queue` and `ended`, lists of turn ids, oldest first.

local ENDED_KEPT = 50
local MAX_TRACES = 8
local MAX_ENTRIES, MAX_BYTES = 10000, 8388608
local BACKOFF_MS = {1000, 5000}
local LONGEST_PAUSE_MS = 60000
local LEASE_MS = 30000

-- What changes in the hash is written at once, by save().
local records, lists, unsaved = {}, {}, {}

local function turn_of(id)
  if records[id] then return records[id] end
  local record = redis.call('HGET', turns, id)
  if not record or string.sub(record, 1, 1) ~= '{' then return nil end -- `queue` and `ended` are no turns
  return cjson.decode(record)
end

local function put(turn)
  records[turn.turn_id] = turn
  unsaved[turn.turn_id] = true
end

local function list(name)
  if not lists[name] then
    lists[name] = {}
    for id in string.gmatch(redis.call('HGET', turns, name) or '', '%S+') do table.insert(lists[name], id) end
  end
  return lists[name]
end

local function put_list(name, ids)
  lists[name] = ids
  unsaved[name] = true
end

flush_turns = function()
  local args = {}
  for name in pairs(unsaved) do
    args[#args + 1] = name
    args[#args + 1] = lists[name] and table.concat(lists[name], ' ') or cjson.encode(records[name])
  end
  unsaved = {}
  if #args > 0 then redis.call('HSET', turns, unpack(args)) end
end

local function without(ids, id)
  local rest = {}
  for _, other in ipairs(ids) do
    if other ~= id then rest[#rest + 1] = other end
  end
  return rest
end

-- Where the requests stood that brought its messages (domain/traces.py); the first is whose
-- trace the answer belongs to. No empty array: cjson would make an object of it.
local function carry(turn, traces)
  if not traces then return end
  turn.traces = turn.traces or {}
  for _, trace in ipairs(traces) do
    if #turn.traces < MAX_TRACES then turn.traces[#turn.traces + 1] = trace end
  end
end

-- Append to the log and tell followers; the cursor is the entry's id, its time,
-- and the position in every transport, so it never repeats and never goes back.
local function write(kind, turn_id, status, body)
  local prev = s.cursor
  local cursor = math.max(now, prev + 1)
  redis.call('XADD', log, int(cursor) .. '-0',
    'kind', kind, 'prev', int(prev), 'turn', turn_id, 'status', status, 'body', body)
  set('cursor', cursor)
  set('log_bytes', s.log_bytes + #body)
  publish(kind == 'message' and 'message.created' or kind, cursor, prev,
    (turn_id ~= '' and turn_id or '-') .. ' ' .. (status ~= '' and status or '-'), body)
  return cursor
end

-- Only up to the oldest unanswered message: what an agent still has to read stays.
local function trim()
  local oldest = s.cursor
  local running_or_next = s.turn ~= '' and turn_of(s.turn)
  if running_or_next then oldest = running_or_next.messages[1] end
  while s.log_bytes > MAX_BYTES or redis.call('XLEN', log) > MAX_ENTRIES do
    local entry = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if not entry or tonumber(string.match(entry[1], '%d+')) >= oldest then return end
    redis.call('XDEL', log, entry[1])
    set('log_bytes', s.log_bytes - #entry[2][10])
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
  if s.ready_ms == 0 then return end
  redis.call('ZREM', ready, string.lower(s.agent_id) .. ':' .. int(s.ready_ms) .. ':' .. sid)
  set('ready_ms', 0)
end

local function enter_ready()
  if s.ready_ms == 0 then
    set('ready_ms', now)
    redis.call('ZADD', ready, 0, string.lower(s.agent_id) .. ':' .. int(now) .. ':' .. sid)
  end
  hint(sid)
end

-- What is next for the session: the running turn, else the oldest queued one.
local function reckon(taken)
  if taken then
    redis.call('ZADD', running, 0, string.lower(s.agent_id) .. ':' .. sid)
    set('turn', taken.turn_id)
    set('turn_state', 'running')
    return leave_ready()
  end
  local first = list('queue')[1]
  set('turn', first or '')
  set('turn_state', first and 'queued' or '')
  if first and s.retry_ms <= now then return enter_ready() end
  leave_ready()
end

local function enqueue(turn, at_front)
  local ids = list('queue')
  if at_front then table.insert(ids, 1, turn.turn_id) else ids[#ids + 1] = turn.turn_id end
  put_list('queue', ids)
  set('queued', s.queued + #turn.messages)
  set('queued_bytes', s.queued_bytes + turn.bytes)
end

local function dequeue(turn)
  put_list('queue', without(list('queue'), turn.turn_id))
  set('queued', s.queued - #turn.messages)
  set('queued_bytes', s.queued_bytes - turn.bytes)
  if s.turn == turn.turn_id then set('retry_ms', 0) end -- the pause is that of the first in the queue
end

local function hold(turn, lease_ms)
  turn.lease_ms = math.min(now + lease_ms, turn.deadline_ms)
  set('held_until_ms', math.min(turn.lease_ms, cap_ms()))
end

-- Take an open turn out of queue or hands, into its end; the caller says what it was.
local function close(turn, state)
  if turn.state == 'queued' then
    dequeue(turn)
  else
    set('held_until_ms', 0)
    leave_running()
  end
  if s.turn == turn.turn_id then -- whose draft it is, running or lapsed
    redis.call('DEL', draft)
    set('turn', '')
    set('turn_state', '')
  end
  turn.state = state
  turn.traces = nil
  turn.ended_ms = now
  put(turn)
  local ids = list('ended')
  ids[#ids + 1] = turn.turn_id
  while #ids > ENDED_KEPT do
    local forgotten = table.remove(ids, 1)
    redis.call('HDEL', turns, forgotten)
    records[forgotten], unsaved[forgotten] = nil, nil
  end
  put_list('ended', ids)
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
  set('held_until_ms', 0)
  leave_running()
  enqueue(turn, true)
  set('retry_ms', turn.not_before_ms or 0)
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
  redis.call('HDEL', turns, '') -- deletes nothing, but begins as what frees: works when Redis is full
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
