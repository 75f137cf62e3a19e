-- What every script on a session starts with: its keys, Redis's clock, the
-- session itself, and the way its state is changed, saved and replied.
--
-- `s` is the state, an array (store/state.py): in place of `s.rev` the script is
-- loaded with the field's place. Numbers are 0 and texts '' where there is nothing.
-- That the key exists proves nothing: it outlives the session by the retention.
-- `over()` is the only test of life.
--
-- A script that says `-- turn: ARGV[3]` has the id of a turn there, whose record is read
-- with the session's own fields (store/loader.py).

local session, alarm, log, draft, due, ready, users, agents, near, running, live = unpack(KEYS)
local sid, grant = ARGV[1], ARGV[2]
local time = redis.call('TIME') -- once: on Redis 6.2 it moves within a script
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', session, 'state', 'metadata')
local s = state_of(stored[1])
local outbox, fresh = {}, {}
local asked = nil
local add_fields -- to what save() writes

-- Lua prints 1.79e+12 for an instant; Redis wants digits.
local function int(x) return string.format('%d', x) end

-- What is told to followers leaves after what it tells of is written, in one message. On a
-- cluster the call is another: store/loader.py.
local function tell()
  local message = table.concat(outbox)
  outbox = {}
  if message ~= '' then redis.call('PUBLISH', live, message) end
end

local function cap_ms() return s.created_ms + s.max_duration_ms end
local function end_ms() return math.max(s.expires_ms, s.held_until_ms) end

-- Until when what is left of the session can be seen; from then on it is not there.
local function gone_ms() return end_ms() + s.retention_ms end

-- Every per-session key lives until then, and up to a sixtieth of the retention or a minute
-- longer: so the keys need not be told of every renewal, but for one that is new (`fresh`).
local function save()
  local grain_ms = math.max(1, math.min(math.floor(s.retention_ms / 60), 60000))
  local until_ms = math.ceil(gone_ms() / grain_ms) * grain_ms
  local has_moved = until_ms ~= s.keys_until_ms
  if has_moved then s.keys_until_ms = until_ms end
  stored[1] = cmsgpack.pack(s)
  local args = {'state', stored[1]}
  if add_fields then add_fields(args) end
  redis.call('HSET', session, unpack(args))
  local at = int(until_ms)
  if has_moved then
    redis.call('PEXPIREAT', session, at)
    if s.cursor > 0 then redis.call('PEXPIREAT', log, at) end
    if s.turn_state ~= '' then redis.call('PEXPIREAT', draft, at) end
  else
    for _, key in ipairs(fresh) do redis.call('PEXPIREAT', key, at) end
  end
  fresh = {}
  tell()
end

local function reason()
  if s.reason ~= '' then return s.reason end
  return end_ms() >= cap_ms() and 'max_duration' or 'timeout'
end

-- Nil if the session is the caller's; else the reply: one that is not theirs, and one that is not
-- there, are the same. `grant` is '', which opens every session, or words, any of which opens it:
-- its app, `agent:<agent id>`, `token:<epoch>:<expires_ms>` of a token that was made for it.
local function refused_by_grant()
  if s.app == '' or now >= gone_ms() then return {'absent', sid} end
  if grant == '' or grant == s.app then return nil end
  for word in string.gmatch(grant, '%S+') do
    if word == s.app or word == 'agent:' .. string.lower(s.agent_id) then return nil end
    local epoch, expires_ms = string.match(word, '^token:(%d+):(%d+)$')
    if epoch then
      if tonumber(epoch) ~= s.token_epoch then return {'token', sid, 'revoked'} end
      if now >= tonumber(expires_ms) then return {'token', sid, 'expired'} end
      return nil
    end
  end
  return {'absent', sid}
end

-- The reply for a session that cannot be used, or nil if it lives.
local function over()
  local stranger = refused_by_grant()
  if stranger then return stranger end
  local ended = end_ms()
  if now < ended and s.reason == '' then return nil end -- a clock set back revives nothing
  return {
    'expired', sid, int(now), int(ended), int(gone_ms()), reason(),
    s.reason == '' and 'unsettled' or 'settled', stored,
  }
end
