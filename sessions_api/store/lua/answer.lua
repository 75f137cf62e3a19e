--[[ answer: the log entry that answers a turn.

KEYS   the session's four
ARGV   sid, grant, turn_id, after (cursor of its message, 0 = unknown)
REPLY  {'ok', sid, entry} | {'none', sid} | absent

By the record's cursor while the turn is among the last 50 that ended, else by its
turn id in the log after its message. ]]
-- needs: session
-- turn: ARGV[3]

local turn_id, after = ARGV[3], ARGV[4]
local BATCH = 200

local dead = over()
if dead and dead[1] ~= 'expired' then return dead end
local record = #turn_id == 36 and stored[3]
local cursor = record and cmsgpack.unpack(record).answer or 0
if cursor > 0 then
  local entry = redis.call('XRANGE', log, int(cursor), int(cursor))[1]
  if entry then return {'ok', sid, entry} end
end
if record then return {'none', sid} end
local from, answer = '(' .. after .. '-0', '{"turnId":"' .. turn_id .. '","status":"'
while true do
  local page = redis.call('XRANGE', log, from, '+', 'COUNT', BATCH)
  for _, entry in ipairs(page) do
    if string.sub(entry[2][4], 1, #answer) == answer then return {'ok', sid, entry} end
  end
  if #page < BATCH then return {'none', sid} end
  from = '(' .. page[#page][1]
end
