--[[ revoke: every session token that was made for the session so far ends.

KEYS   the session's eleven
ARGV   sid, grant, op
REPLY  {'ok', sid, now, fields} | expired | absent | token

Tokens name the epoch in which they were made; this begins another one. Followers
that came with a token read the session again, and are told. Repeatable by its op. ]]
-- needs: session clock

local op = ARGV[3]

local dead = over()
if dead then return dead end
if not outcome_of(op) then
  remember(op, 'ok')
  s.token_epoch = s.token_epoch + 1
  fact('tokens.revoked')
  save()
end
return {'ok', sid, int(now), stored}
