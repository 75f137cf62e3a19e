--[[ read: the session as it stands; renews nothing.

KEYS   session
ARGV   sid, grant
REPLY  {'ok', sid, now, fields} | expired | absent ]]
-- needs: session

return over() or {'ok', sid, int(now), stored}
