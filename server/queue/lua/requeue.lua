-- Return a leased job to its queue position, so that any worker takes it at once. args: id, token, error (JSON text;
-- absent if the job is not at fault), max_attempts, ttl_s, discard_progress. Returns the new state, or 'fenced'.
local id, error = args.id, args.error
local job = keys.job_hash(id)
local f = read_leased(id, args.token, 'cancel_requested', 'attempt', 'model', 'class', 'caller', 'work', 'sequence',
  'deadline', 'owner')
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
transition(id, f[1], 'queued', f[11], f[9], 'step', 0)
enqueue_waiting(id, f[5], f[6], f[7], f[8], f[9], f[10])
if not error then -- the next attempt charges its caller again
  redis.call('ZINCRBY', keys.callers_zset(f[5], f[6]), -f[8], f[7])
end
return 'queued'
