--[[ serving: how many live sessions of a partition an agent has, over all apps.

KEYS   agents
ARGV   agent_id
REPLY  their number

Steps from app to app by range: it counts, and reads one member an app. ]]

local agents = KEYS[1]
local agent_id = ARGV[1]

local count, from = 0, '-'
while true do
  local member = redis.call('ZRANGEBYLEX', agents, from, '+', 'LIMIT', 0, 1)[1]
  if not member then return count end
  local app = string.match(member, '^[^:]+')
  local owner = app .. ':' .. agent_id
  count = count + redis.call('ZLEXCOUNT', agents, '[' .. owner .. ':', '(' .. owner .. ';')
  from = '(' .. app .. ';'
end
