--[[ configure: change the timeouts of a live session; the deadline counts from its last renewal.

KEYS   the session's eleven
ARGV   sid, grant, op, if_match ('' = whatever), then source and value of timeout_ms,
       auto_renew, max_duration_ms, warning_ms (source '' = keep)
REPLY  {'renewed' | 'kept', sid, now, fields}, by whether the deadline moved
       | {'stale', sid, version} | {'past', sid, deadline}
       | {'threshold' | 'duration', sid, timeout_ms, value} | expired | absent

Fields not named keep their value. A threshold from a lower tier that is not below
the timeout is halved to fit; the session's own is refused. Repeatable by its op. ]]
-- needs: session clock

local op, if_match = ARGV[3], ARGV[4]

local dead = over()
if dead then return dead end
local before = outcome_of(op)
if before then return {before, sid, int(now), stored} end
if if_match ~= '' and tonumber(if_match) ~= s.config_version then
  return {'stale', sid, int(s.config_version)}
end

local sources = {}
local function chosen(i, kept)
  local source, value = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  sources[i] = source ~= '' and source or string.sub(s.sources, i, i)
  return source ~= '' and tonumber(value) or kept
end
s.timeout_ms = chosen(1, s.timeout_ms)
s.auto_renew = chosen(2, s.auto_renew)
s.max_duration_ms = chosen(3, s.max_duration_ms)
s.warning_ms = chosen(4, s.warning_ms)
if s.warning_ms >= s.timeout_ms then
  if sources[4] == 's' then return {'threshold', sid, int(s.timeout_ms), int(s.warning_ms)} end
  s.warning_ms = math.floor(s.timeout_ms / 2)
end
if sources[3] == 's' and s.max_duration_ms < s.timeout_ms then
  return {'duration', sid, int(s.timeout_ms), int(s.max_duration_ms)}
end
local deadline = math.min(s.last_renewal_ms + s.timeout_ms, cap_ms())
local held = s.held_until_ms > now
if deadline <= now and not held then return {'past', sid, int(deadline)} end

local moved = deadline ~= s.expires_ms
s.sources = table.concat(sources)
s.config_version = s.config_version + 1
s.expires_ms = deadline
if held then
  local lease_ms = cmsgpack.unpack(redis.call('HGET', session, s.turn)).lease_ms
  s.held_until_ms = math.min(lease_ms, cap_ms())
end
if end_ms() <= now then return {'past', sid, int(end_ms())} end
unwarn()
local word = moved and 'renewed' or 'kept'
remember(op, word)
if moved then fact('session.renewed', int(deadline) .. ' ' .. int(s.renewals) .. ' config') end
warn()
fact('session.updated') -- the last: who hears it reads the session, and takes earlier facts as known
arm(true)
save()
return {word, sid, int(now), stored}
