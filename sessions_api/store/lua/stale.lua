--[[ stale: for each agent with ready work in a partition, the session that waits longest.

KEYS   ready
ARGV   waited_ms, limit (agents looked at)
REPLY  members that are ready for waited_ms or longer, one an agent

Steps from agent to agent by range, so that one agent's queue hides no other's. ]]

local ready = KEYS[1]
local waited_ms, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local latest = time[1] * 1000 + math.floor(time[2] / 1000) - waited_ms

local stale, from = {}, '-'
for _ = 1, limit do
  local member = redis.call('ZRANGEBYLEX', ready, from, '+', 'LIMIT', 0, 1)[1]
  if not member then break end
  local agent, since = string.match(member, '^([^:]+):(%d+):')
  if tonumber(since) <= latest then stale[#stale + 1] = member end
  from = '(' .. agent .. ';'
end
return stale
