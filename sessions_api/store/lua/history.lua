--[[ history: whether the log of a session may be read.

KEYS   session
ARGV   sid, grant, ended ('1' = also when expired)
REPLY  {'ok', sid} | expired | absent

The messages themselves are read by themselves (store/pages.py). ]]
-- needs: session

local dead = over()
if dead and (dead[1] ~= 'expired' or ARGV[3] ~= '1') then return dead end
return {'ok', sid}
