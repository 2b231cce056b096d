-- Return a leased job to its queue position, so that any worker takes it at once. args: id, token, error (JSON text;
-- absent if the job is not at fault), max_attempts, ttl_s, discard_progress. Returns the new state, or 'fenced'.
local id, error = args.id, args.error
local job = keys.job_hash(id)
local f = read_leased(id, args.token, 'cancel_requested', 'attempt', 'model')
if not f then return 'fenced' end
redis.call('HINCRBY', job, 'token', 1) -- from here on this lease is fenced out
if f[3] == '1' then
  finish(id, 'canceled', args.ttl_s)
  return 'canceled'
end
if args.discard_progress then redis.call('DEL', keys.resume_hash(id)) end
if not error then
  redis.call('HINCRBY', job, 'attempt', -1) -- a drain is not a failed attempt
else
  redis.call('HSET', job, 'error', error)
  if tonumber(f[4]) >= args.max_attempts then
    dead_letter(id, error)
    finish(id, 'failed', args.ttl_s)
    return 'failed'
  end
end
redis.call('ZREM', keys.leases_zset(f[5]), id)
transition(id, 'queued')
redis.call('HSET', job, 'step', 0)
enqueue_waiting(id)
if not error then -- the next attempt charges its caller again
  local g = read(id, 'class', 'caller', 'work')
  redis.call('ZINCRBY', keys.callers_zset(f[5], g[1]), -g[3], g[2])
end
return 'queued'
