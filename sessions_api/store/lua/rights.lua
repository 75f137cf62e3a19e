--[[ rights: which commands of the scripts this user may not call; nothing is left behind.

KEYS   text, fields, scored, stream (all new, in one slot), live (a channel)
ARGV   the commands that are asked for
REPLY  those of them that are refused for want of a right

Each is called once, on keys of its own that are gone at the end: without DEL nothing
else is tried. What else may go wrong with a command (memory is full) is no matter of
rights. ]]

local text, fields, scored, stream, live = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local calls = {
  APPEND = {text, ''}, DEL = {text}, EXISTS = {text}, GET = {text},
  HDEL = {fields, 'f'}, HGET = {fields, 'f'}, HGETALL = {fields}, HINCRBY = {fields, 'n', 1},
  HKEYS = {fields}, HLEN = {fields}, HMGET = {fields, 'f'}, HSET = {fields, 'f', ''},
  HSETNX = {fields, 'g', ''}, PEXPIRE = {text, 1}, PEXPIREAT = {text, '1'}, PTTL = {text}, PUBLISH = {live, ''},
  SET = {text, '', 'PX', 1}, SPUBLISH = {live, ''}, STRLEN = {text}, TIME = {},
  XADD = {stream, '1-0', 'f', ''}, XDEL = {stream, '1-0'}, XLEN = {stream},
  XRANGE = {stream, '-', '+'}, XREVRANGE = {stream, '+', '-'},
  ZADD = {scored, 1, 'm'}, ZCARD = {scored}, ZCOUNT = {scored, 0, 1}, ZLEXCOUNT = {scored, '-', '+'},
  ZRANGE = {scored, 0, 0}, ZRANGEBYLEX = {scored, '-', '+'}, ZRANGEBYSCORE = {scored, 0, 1},
  ZREM = {scored, 'm'}, ZREMRANGEBYSCORE = {scored, 0, 1}, ZREVRANGEBYLEX = {scored, '+', '-'},
  ZSCORE = {scored, 'm'},
}

local function is_refused(name)
  if not calls[name] then return false end
  local reply = redis.pcall(name, unpack(calls[name]))
  local err = type(reply) == 'table' and reply.err or ''
  -- To its caller a script says NOPERM; inside, Redis 7 and Redis 6.2 each have their own words.
  return string.find(err, 'NOPERM') or string.find(err, 'ACL failure')
    or string.find(err, "can't run this command")
end

if is_refused('DEL') then return {'DEL'} end
local refused = {}
for _, name in ipairs(ARGV) do
  if is_refused(name) then refused[#refused + 1] = name end
end
redis.pcall('DEL', text, fields, scored, stream)
return refused
