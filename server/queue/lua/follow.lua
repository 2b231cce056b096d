-- Keep a job's events from now on. args: id. Does nothing if they are kept already, or the job has ended.
local id = args.id
local events = keys.events_stream(id)
local f = read(id, 'state', 'step')
if not f[1] or TERMINAL[f[1]] or redis.call('EXISTS', events) == 1 then return 0 end
redis.call('XADD', events, '*', 'type', 'status', 'value', f[1])
if f[2] and f[2] ~= '0' then redis.call('XADD', events, '*', 'type', 'progress', 'value', f[2]) end
return 1
