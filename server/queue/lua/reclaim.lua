-- Take over jobs whose lease has expired. args: model, worker, lease_ms, max_attempts, ttl_s, count, and held, the ids
-- of the jobs that the worker runs. Those are renewed instead: the renewal was late, and no other worker was quicker.
-- The worker's name on a lease is not enough: the worker never heard of the job if the reply to `take` was lost.
local held, found = {}, {}
for _, id in ipairs(args.held) do held[id] = true end
local lapsed = redis.call('ZRANGEBYSCORE', keys.leases_zset(args.model), '-inf', time_text(clock()), 'LIMIT', 0, 100)
for _, id in ipairs(lapsed) do
  if #found >= args.count then break end
  if not intact(id) then -- its record is gone or damaged
    redis.call('ZREM', keys.leases_zset(args.model), id)
  elseif held[id] and redis.call('HGET', keys.job_hash(id), 'worker') == args.worker then
    set_lease(id, args.lease_ms)
  else
    found[#found + 1] = start_attempt(id, args)
  end
end
return found
