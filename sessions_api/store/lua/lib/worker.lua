-- Whose write is this? A worker's write names its turn and the fence it was given.
--
-- Every one of them replies `written`, unless it was refused:
--   {'ok' | 'cancelled', sid, 'new' | 'again', agent, worker, ran_ms, became}
-- 'again' is a repeat, which changed nothing; `ran_ms` counts from the claim. So
-- whichever replica did it knows whose it was, and counts it once.

local function written(word, how, turn, became)
  return {word, sid, how, string.lower(s.agent_id), turn.worker or '',
    int(now - (turn.started_ms or now)), became or 'kept'}
end

-- 'own': its turn is open and the fence is the last one drawn, lapsed or not.
-- 'cancelled': told, nothing is written. 'lost': another attempt has it, or had the
-- last word. 'unknown': no such turn. Else the state in which its own attempt left it.
local function standing_of(turn, fence)
  if not turn then return 'unknown' end
  if turn.state == 'cancelled' then return 'cancelled' end
  if turn.fence ~= fence then return 'lost' end
  if turn.state == 'running' or (turn.state == 'queued' and turn.lapsed) then return 'own' end
  return turn.state
end

-- A write that cannot be done, and why: {'unknown', sid}, or 'lost' with 'taken' (by
-- another attempt), 'ended' (this attempt is over) or 'late' (its deadline has passed)
-- and the turn's state.
local function refused(turn, standing)
  if standing == 'unknown' then return {'unknown', sid} end
  local why = standing == 'lost' and 'taken' or standing == 'own' and 'late' or 'ended'
  return {'lost', sid, why, turn.state}
end

-- Its worker is told of a cancel by each of its writes, and the first of them is news.
local function told(turn, fence)
  if turn.fence ~= fence then return {'cancelled', sid, 'again', string.lower(s.agent_id), '', 0, 'kept'} end
  if turn.told then return written('cancelled', 'again', turn) end
  turn.told = true
  redis.pcall('HSET', session, turn.turn_id, cmsgpack.pack(turn)) -- in a full Redis it stays news
  return written('cancelled', 'new', turn)
end

-- A lapsed turn that its worker still writes to is running again, within its deadline.
-- Followers were told that it is queued, and get its text once more; whether they do.
local function revive(turn)
  if turn.state ~= 'queued' or now >= turn.deadline_ms then return false end
  dequeue(turn)
  turn.state = 'running'
  turn.lapsed = nil
  turn.not_before_ms = nil
  enter_running(turn)
  fact('turn.started', turn.turn_id .. ' ' .. int(turn.attempt) .. ' ' .. turn.message_id)
  if turn.units > 0 then
    publish('turn.delta', 0, 0, turn.turn_id .. ' ' .. turn.message_id .. ' ' .. int(turn.index - 1) .. ' 0',
      redis.call('GET', draft))
  end
  return true
end
