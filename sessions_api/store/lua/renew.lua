--[[ renew: restart the idle clock of a live session by hand.

KEYS   the session's eleven, once
ARGV   sid, grant, op, fingerprint ('' without a key)
REPLY  {'ok' | 'repeated', sid, now, fields} | {'capped', sid, now, fields} | {'mismatch', sid}
       | expired | absent

Repeatable by its op. 'capped': the deadline stands at createdAt + maxDuration. ]]
-- needs: session clock

local once = KEYS[12]
local op, fingerprint = ARGV[3], ARGV[4]

local stranger = refused_by_grant()
if stranger then return stranger end
if fingerprint ~= '' then
  local first = redis.call('GET', once)
  if first then
    local known, by = string.match(first, '(%S+) (%S+)')
    if known ~= fingerprint then return {'mismatch', sid} end
    return {by == op and 'ok' or 'repeated', sid, int(now), stored}
  end
end
local dead = over()
if dead then return dead end
local before = outcome_of(op)
if before then return {before, sid, int(now), stored} end
local word = s.expires_ms >= cap_ms() and 'capped' or 'ok'
remember(op, word)
if word == 'ok' then
  s.last_activity_ms = now
  renew('manual')
  warn()
  arm()
end
save()
if word == 'ok' and fingerprint ~= '' then redis.call('SET', once, fingerprint .. ' ' .. op, 'PX', 86400000) end
return {word, sid, int(now), stored}
