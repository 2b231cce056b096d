-- Return a leased job to its place in the line, so that any worker takes it at once.
-- ARGV: 1 id, 2 token, 3 error JSON ('' = not its fault), 4 max attempts, 5 ttl_s, 6 anew (0|1).
local id, token, error, max_attempts, ttl_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local job = key('job', id)
local f = read(id, 'state', 'token', 'cancel', 'attempt', 'model')
if not f[1] or TERMINAL[f[1]] or f[2] ~= token then return 'fenced' end
redis.call('HINCRBY', job, 'token', 1) -- from here on the giver is fenced out
if f[3] == '1' then
  conclude(id, 'canceled', ttl_s)
  return 'canceled'
end
if ARGV[6] == '1' then redis.call('DEL', key('resume', id)) end
if error == '' then
  redis.call('HINCRBY', job, 'attempt', -1) -- a drain is not a failed try
else
  redis.call('HSET', job, 'error', error)
  if tonumber(f[4]) >= max_attempts then
    bury(id, error)
    conclude(id, 'failed', ttl_s)
    return 'failed'
  end
end
redis.call('ZREM', key('leases', f[5]), id)
move(id, 'queued')
redis.call('HSET', job, 'step', 0)
join(id)
if error == '' then -- it will be charged again
  local g = read(id, 'class', 'caller', 'work')
  redis.call('ZINCRBY', key('ring', f[5], g[1]), -g[3], g[2])
end
return 'queued'
