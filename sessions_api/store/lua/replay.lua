--[[ replay: what a follower needs to join: the session, the draft, a page of the log.

KEYS   the session's four
ARGV   sid, grant, after (cursor, '' = no entries), limit, max_bytes
REPLY  {'ok', sid, now, fields, record, text, oldest, complete, entries}
       | {'expired', sid, now, end, retained, reason, settled, fields, oldest, complete, entries} | absent

Read at one instant, so that the page which ends at the session's cursor and the
draft join without a gap. `record` is the running turn's, '' without one. ]]
-- needs: session

local after, limit, max_bytes = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local dead = over()
if dead and dead[1] ~= 'expired' then return dead end
local entries, complete, oldest = {}, 1, 0
local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
if first then oldest = tonumber(string.match(first[1], '%d+')) end
if after ~= '' then
  local bytes = 0
  for _, entry in ipairs(redis.call('XRANGE', log, '(' .. after .. '-0', '+', 'COUNT', limit)) do
    bytes = bytes + #entry[2][4]
    if #entries > 0 and bytes > max_bytes then break end
    entries[#entries + 1] = entry
  end
  local last = entries[#entries]
  if last and tonumber(string.match(last[1], '%d+')) < s.cursor then complete = 0 end
end
if dead then
  dead[9], dead[10], dead[11] = int(oldest), complete, entries
  return dead
end
local record, text = '', ''
if s.turn_state == 'running' then
  record = redis.call('HGET', session, s.turn) or ''
  text = redis.call('GET', draft) or ''
end
return {'ok', sid, int(now), stored, record, text, int(oldest), complete, entries}
