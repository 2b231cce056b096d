-- From now on keep what happens to a job as events. ARGV: 1 id. Nothing to do if it is kept already, or has ended.
local id = ARGV[1]
local f = read(id, 'state', 'step')
if not f[1] or TERMINAL[f[1]] or redis.call('EXISTS', key('events', id)) == 1 then return 0 end
redis.call('XADD', key('events', id), '*', 'type', 'status', 'value', f[1])
if f[2] and f[2] ~= '0' then redis.call('XADD', key('events', id), '*', 'type', 'progress', 'value', f[2]) end
return 1
