--[[ heartbeat: the user is there; renews if the session renews itself and the cap allows.

KEYS   the session's eleven
ARGV   sid, grant, op
REPLY  {'renewed' | 'kept', sid, now, fields} | expired | absent

Repeatable by its op. ]]
-- needs: session clock

local op = ARGV[3]

local dead = over()
if dead then return dead end
local before = outcome_of(op)
if before then return {before, sid, int(now), stored} end
s.last_activity_ms = now
local word = s.auto_renew == 1 and renew('heartbeat') and 'renewed' or 'kept'
remember(op, word)
warn()
arm()
save()
return {word, sid, int(now), stored}
