-- Whose write is this? A worker's write names its turn and the fence it was given.

-- 'own': its turn is open and the fence is the last one drawn, lapsed or not.
-- 'cancelled': told, nothing is written. 'lost': another attempt, or failed for good.
local function standing_of(turn, fence)
  if not turn then return 'unknown' end
  if turn.state == 'cancelled' then return 'cancelled' end
  if turn.fence ~= fence then return 'lost' end
  if turn.state == 'running' or (turn.state == 'queued' and turn.lapsed) then return 'own' end
  return turn.state
end

-- A lapsed turn that its worker still writes to is running again, within its deadline.
local function revive(turn)
  if turn.state ~= 'queued' or now >= turn.deadline_ms then return end
  dequeue(turn)
  turn.state = 'running'
  turn.lapsed = nil
  reckon(turn)
end
