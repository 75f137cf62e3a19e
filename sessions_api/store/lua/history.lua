--[[ history: one page of messages, newest first.

KEYS   the session's five
ARGV   sid, app, limit, before, after (cursors, '' = none), ended ('1' = also when expired)
REPLY  {'ok', sid, more, entries} | expired | absent

`before` and `after` are exclusive. With `after` alone the page is the oldest of
the newer ones; `more` is 1 only if there is more in the direction asked. The log
also holds turns that failed or were cancelled; a page counts messages only. ]]
-- needs: session

local limit, before, after, ended = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]

local dead = over()
if dead and (dead[1] == 'absent' or ended ~= '1') then return dead end
local forward = after ~= '' and before == ''
local low = after ~= '' and '(' .. after .. '-0' or '-'
local high = before ~= '' and '(' .. before .. '-0' or '+'
local entries, batch = {}, limit + 1
while #entries <= limit do
  local page = forward and redis.call('XRANGE', log, low, high, 'COUNT', batch)
    or redis.call('XREVRANGE', log, high, low, 'COUNT', batch)
  for _, entry in ipairs(page) do
    if entry[2][2] == 'message' then entries[#entries + 1] = entry end
  end
  if #page < batch then break end
  if forward then low = '(' .. page[#page][1] else high = '(' .. page[#page][1] end
end
local more = #entries > limit and 1 or 0
while #entries > limit do table.remove(entries) end
if forward then
  local reversed = {}
  for i = #entries, 1, -1 do reversed[#reversed + 1] = entries[i] end
  entries = reversed
end
return {'ok', sid, more, entries}
