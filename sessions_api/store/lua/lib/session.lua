-- What every script on a session starts with: its keys, Redis's clock, the
-- session itself, and the way its fields are changed, saved and replied.
--
-- `s` holds the fields; numbers are numbers, 0 where absent. `read_fields` and
-- `reply_fields` come from store/scripts.py, written out: a table made or a
-- number printed for nothing costs more here than the command that fetched it.
-- That the key exists proves nothing: it outlives the session by the retention.
-- `over()` is the only test of life.

local session, alarm, log, turns, draft, due, ready, users, agents, near, running, live = unpack(KEYS)
local sid, grant = ARGV[1], ARGV[2]
local time = redis.call('TIME') -- once: on Redis 6.2 it moves within a script
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local s, stored = read_fields(session)
local changed, outbox = {}, {}
local flush_turns -- by turns.lua

-- Lua prints 1.79e+12 for an instant; Redis wants digits.
local function int(x) return string.format('%.0f', x) end

local function set(name, value)
  s[name] = value
  changed[name] = true
end

-- What is told to followers leaves after what it tells of is written. On a cluster the call is
-- another: store/scripts.py.
local function tell()
  for _, message in ipairs(outbox) do redis.call('PUBLISH', live, message) end
  outbox = {}
end

local function save()
  local args = {}
  for name, is_changed in pairs(changed) do
    if is_changed then
      local value = s[name]
      args[#args + 1] = name
      args[#args + 1] = type(value) == 'number' and int(value) or value
    end
  end
  if flush_turns then flush_turns() end
  if #args > 0 then redis.call('HSET', session, unpack(args)) end
  for name in pairs(changed) do changed[name] = false end -- saved, and not as stored
  tell()
end

local function fields() return reply_fields(s, stored, changed, int) end

local function cap_ms() return s.created_ms + s.max_duration_ms end
local function end_ms() return math.max(s.expires_ms, s.held_until_ms) end

local function reason()
  if s.reason ~= '' then return s.reason end
  return end_ms() >= cap_ms() and 'max_duration' or 'timeout'
end

-- Nil if the session is the caller's; else the reply: one that is not theirs, and one that is not
-- there, are the same. `grant` is '', which opens every session, or words, any of which opens it:
-- its app, `agent:<agent id>`, `token:<epoch>:<expires_ms>` of a token that was made for it.
local function refused_by_grant()
  if s.app == '' then return {'absent', sid} end
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
    'expired', sid, int(now), int(ended), int(ended + s.retention_ms), reason(),
    s.reason == '' and 'unsettled' or 'settled', fields(),
  }
end
