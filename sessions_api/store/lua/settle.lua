--[[ settle: agents whose workers may have gone, or changed while it was too early to say so.

KEYS   presence, states, then for each agent its workers
ARGV   the agents
REPLY  {'ok'}

Repeatable by nature: it says what is so. ]]
-- needs: attendance

for i, agent in ipairs(ARGV) do
  local workers = KEYS[i + 2]
  settle(agent, workers)
end
return {'ok'}
