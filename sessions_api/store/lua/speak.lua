--[[ speak: a message that nobody asked for enters the log, by the agent or the system.

KEYS   the session's eleven, once
ARGV   sid, grant, message_id, body, fingerprint ('' without a key)
REPLY  {'ok' | 'repeated', sid, now, message_id, cursor, fields} | {'mismatch', sid} | expired | absent

It belongs to no turn, is not the user's activity and renews nothing. Repeatable
by its once entry. ]]
-- needs: session clock turns

local once = KEYS[12]
local message_id, body, fingerprint = ARGV[3], ARGV[4], ARGV[5]

local function accepted(word, id, cursor) return {word, sid, int(now), id, cursor, stored} end

local stranger = refused_by_grant()
if stranger then return stranger end
local first = redis.call('GET', once)
if first then
  local known, id, cursor = string.match(first, '(%S+) (%S+) (%S+)')
  if known ~= (fingerprint ~= '' and fingerprint or '-') then return {'mismatch', sid} end
  return accepted(id == message_id and 'ok' or 'repeated', id, cursor)
end
local dead = over()
if dead then return dead end
-- What names no author is by the session's agent, whose id the replica does not know without a read.
if string.sub(body, 1, 12) ~= '{"authorId":' then
  body = '{"authorId":"' .. s.agent_id .. '",' .. string.sub(body, 2)
end
local cursor = write('message', '', '', body)
redis.call('SET', once, (fingerprint ~= '' and fingerprint or '-') .. ' ' .. message_id .. ' ' .. int(cursor),
  'PX', fingerprint ~= '' and 86400000 or 10000)
trim()
save()
return accepted('ok', message_id, int(cursor))
