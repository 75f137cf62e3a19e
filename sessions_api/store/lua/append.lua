--[[ append: a user's message enters the log and gets its turn.

KEYS   the session's eleven, once, the limits that hold for the message
ARGV   sid, grant, message_id, turn_id, body, on_busy ('' = the session's),
       fingerprint ('' without a key), is_agent_away ('1': refuse all but a repeat),
       trace ('' = none), then quota and window_ms of each limit
REPLY  {'ok' | 'repeated', sid, now, message_id, cursor, turn_id, renewed, fields, standings}
       | {'limited', sid, index, retry_after_ms} | {'away', sid, agent_id} | {'busy', sid, turn_id, state} | {'backlog', sid, queued}
       | {'mismatch', sid} | expired | absent

The idempotency key is looked up before anything else; only success is remembered.
Repeatable by its turn id; a message that opens no turn of its own, by its once
entry. onBusy: queue opens a turn; merge joins the last queued one; interrupt
cancels the running turn and takes all that is queued; reject wants none open. ]]
-- needs: session clock turns ending limits
-- turn: ARGV[4]
-- rarely: cancel expire queued_turns reason
-- rarely: read_limits refusing charge_all

local once = KEYS[12]
local message_id, turn_id, body, on_busy, fingerprint = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local is_agent_away, traces = ARGV[8] == '1', ARGV[9] ~= '' and {ARGV[9]} or nil
local MAX_QUEUED, MAX_QUEUED_BYTES = 100, 4194304

local function accepted(word, id, cursor, turn, renewed, standings)
  return {word, sid, int(now), id, cursor, turn, renewed, stored, standings or {}}
end

local stranger = refused_by_grant()
if stranger then return stranger end
if on_busy == '' then on_busy = s.on_busy end
local is_kept = fingerprint ~= '' or on_busy == 'merge' -- nothing else leaves an entry
local first = is_kept and redis.call('GET', once)
if first then
  local known, id, cursor, turn, renewed = string.match(first, '(%S+) (%S+) (%S+) (%S+) (%S+)')
  if known ~= (fingerprint ~= '' and fingerprint or '-') then return {'mismatch', sid} end
  return accepted(id == message_id and 'ok' or 'repeated', id, cursor, turn, renewed)
end
local before = turn_of(turn_id)
if before then return accepted('ok', message_id, int(before.opened), turn_id, before.renewed) end
local dead = over()
if dead then return dead end
if is_agent_away then return {'away', sid, s.agent_id} end
local limits = nil
if KEYS[13] then
  limits = read_limits(now, 13, 10)
  local refusal, retry_after_ms = refusing(limits)
  if refusal then return {'limited', sid, refusal, retry_after_ms} end
end

-- A user's message is by the session's user, whom the replica does not know without a read.
if string.sub(body, 1, 12) ~= '{"authorId":' then
  body = '{"authorId":"' .. s.user_id .. '",' .. string.sub(body, 2)
end
if on_busy == 'reject' and s.turn ~= '' then return {'busy', sid, s.turn, s.turn_state} end
if s.queued >= MAX_QUEUED or s.queued_bytes + #body > MAX_QUEUED_BYTES then
  return {'backlog', sid, int(s.queued)}
end

local turn = {
  turn_id = turn_id, state = 'queued', messages = {}, bytes = 0, attempt = 0, claims = 0, queued_ms = now,
}
carry(turn, traces)
local joined = nil
if on_busy == 'merge' then
  local last = string.match(s.queue, '%S+$')
  joined = last and turn_of(last)
  if joined and joined.attempt > 0 then joined = nil end -- a worker may still answer it as it was
elseif on_busy == 'interrupt' then
  local queue = queued_turns()
  redis.call('HSET', session, 'state', stored[1]) -- the first write can fail for want of memory
  if s.turn_state == 'running' then cancel(turn_of(s.turn), 'interrupt') end
  if now >= s.expires_ms and s.auto_renew == 0 then -- only the turn kept it alive: over, with this
    s.expires_ms = now
    expire()
    return over()
  end
  for _, id in ipairs(queue) do
    local taken = turn_of(id)
    for _, cursor in ipairs(taken.messages) do turn.messages[#turn.messages + 1] = cursor end
    turn.bytes = turn.bytes + taken.bytes
    carry(turn, taken.traces)
    cancel(taken, 'interrupt', turn_id)
  end
end
if joined then
  turn = joined
  turn_id = turn.turn_id
  carry(turn, traces)
end
local cursor = write('message', turn_id, '', body)
turn.messages[#turn.messages + 1] = cursor
turn.bytes = turn.bytes + #body
s.last_activity_ms = now
local renewed = s.auto_renew == 1 and renew('message') and 1 or 0
if joined then
  s.queued = s.queued + 1
  s.queued_bytes = s.queued_bytes + #body
else
  turn.opened = cursor
  turn.renewed = renewed
  enqueue(turn)
  fact('turn.queued', turn_id)
end
put(turn)
if s.turn_state ~= 'running' then reckon() end
if fingerprint ~= '' or joined then
  redis.call('SET', once, (fingerprint ~= '' and fingerprint or '-') .. ' ' .. message_id .. ' ' .. int(cursor)
    .. ' ' .. turn_id .. ' ' .. renewed, 'PX', fingerprint ~= '' and 86400000 or 10000)
end
trim()
warn()
arm()
save()
return accepted('ok', message_id, int(cursor), turn_id, renewed, limits and charge_all(limits, now))
