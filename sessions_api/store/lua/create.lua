--[[ create: open a session for a user with an agent.

KEYS   the session's eleven (store/keys.py), once
ARGV   sid, app, agent_id, user_id, metadata, timeout_ms, auto_renew, max_duration_ms,
       warning_ms, sources, on_busy, retention_ms, fingerprint ('' without a key), max_open
REPLY  {'ok', sid, now, fields} | {'repeated', other sid} | {'mismatch', sid} | {'crowded', sid, open}

Repeatable by its session id: a repeat finds the session and replies with it. ]]
-- needs: session clock

local once, app = KEYS[12], ARGV[2]
local fingerprint, max_open = ARGV[13], tonumber(ARGV[14])

if s.app ~= '' then return {'ok', sid, int(now), stored} end
if fingerprint ~= '' then
  local first = redis.call('GET', once)
  if first then
    local known, other = string.match(first, '(%S+) (%S+)')
    if known ~= fingerprint then return {'mismatch', sid} end
    return {'repeated', other}
  end
end
local owner = app .. ':' .. string.lower(ARGV[4]) .. ':'
local open = redis.call('ZLEXCOUNT', users, '[' .. owner, '(' .. owner .. '~')
if open >= max_open then return {'crowded', sid, open} end

s.app, s.agent_id, s.user_id, s.sources, s.on_busy = app, ARGV[3], ARGV[4], ARGV[10], ARGV[11]
s.timeout_ms, s.auto_renew, s.max_duration_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
s.warning_ms, s.retention_ms, stored[2] = tonumber(ARGV[9]), tonumber(ARGV[12]), ARGV[5]
s.created_ms = now
-- Listed newest first: two of a user's sessions of one millisecond keep their order.
local newest = redis.call('ZREVRANGEBYLEX', users, '(' .. owner .. '~', '[' .. owner, 'LIMIT', 0, 1)[1]
local listed_ms = newest and math.max(now, string.match(newest, ':(%d+):[^:]+$') + 1) or now
if listed_ms > now then s.listed_ms = listed_ms end
s.last_activity_ms = now
s.last_renewal_ms = now
s.expires_ms = math.min(now + s.timeout_ms, cap_ms())
s.config_version = 1
warn()
arm() -- first, since it can fail for want of memory
add_fields = function(args) args[3], args[4] = 'metadata', stored[2] end
save()
redis.call('ZADD', users, 0, owner .. int(listed_ms) .. ':' .. sid)
redis.call('ZADD', agents, 0, app .. ':' .. string.lower(s.agent_id) .. ':' .. int(listed_ms) .. ':' .. sid)
if fingerprint ~= '' then redis.call('SET', once, fingerprint .. ' ' .. sid, 'PX', 86400000) end
return {'ok', sid, int(now), stored}
