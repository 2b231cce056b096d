-- Take over jobs whose lease has expired. args: model, worker, lease_ms, max_attempts, ttl_s, tokens, one for each job
-- that the worker has room for, and held, the ids of the jobs that the worker runs. Those are renewed instead: the
-- renewal was late, and no other worker was quicker. With but_stored, edits whose image lies in FLUID_RESULTS are left to
-- workers that have it.
-- The worker's name on a lease is not enough: the worker never heard of the job if the reply to `take` was lost.
-- A lease that ends later than any worker could have set it is from before Redis' clock was set back. It gets a new end.
local held, found, leases, lease_s = {}, {}, keys.leases_zset(args.model), args.lease_ms / 1000
for _, id in ipairs(args.held) do held[id] = true end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, time_text(clock() + 2 * lease_s), '+inf', 'LIMIT', 0, 100)) do
  redis.call('ZADD', leases, time_text(clock() + lease_s), id)
end
local lapsed = redis.call('ZRANGEBYSCORE', leases, '-inf', time_text(clock()), 'LIMIT', 0, 100)
for _, id in ipairs(lapsed) do
  if #found >= #args.tokens then break end
  local f = intact(id)
  if not f then -- its record is gone or damaged
    redis.call('ZREM', leases, id)
  elseif held[id] and redis.call('HGET', keys.job_hash(id), 'worker') == args.worker then
    set_lease(id, f[2], args.lease_ms)
  elseif not (args.but_stored and redis.call('HGET', keys.job_hash(id), 'source_object')) then
    found[#found + 1] = start_attempt(id, args.tokens[#found + 1], args)
  end
end
return found
