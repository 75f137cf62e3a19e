--[[ prune: drop the members of an index whose session is gone.

KEYS   index, then one session key for each member
ARGV   the members
REPLY  {'ok', dropped}

Tests and drops in one step, so a session created meanwhile is never dropped. ]]

local index = KEYS[1]
local dropped = 0
for i, member in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 1]) == 0 then
    dropped = dropped + redis.call('ZREM', index, member)
  end
end
return {'ok', dropped}
