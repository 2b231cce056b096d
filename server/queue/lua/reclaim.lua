-- Jobs whose lease has lapsed, as leases of ours. ARGV: 1 model, 2 worker, 3 lease_ms, 4 max attempts, 5 ttl_s, 6 count,
-- then the ids that we work on. Those are renewed instead: our renewal was late, and nobody else was quicker.
-- Our name on a lease does not do: we may never have heard of it, if the reply to `take` was lost.
local model, worker, lease_ms, max_attempts, ttl_s, count =
  ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local held, found = {}, {}
for i = 7, #ARGV do held[ARGV[i]] = true end
local lapsed = redis.call('ZRANGEBYSCORE', key('leases', model), '-inf', text(clock()), 'LIMIT', 0, 100)
for _, id in ipairs(lapsed) do
  if #found >= count then break end
  if held[id] and redis.call('HGET', key('job', id), 'worker') == worker then
    hold(id, lease_ms)
  else
    found[#found + 1] = lease(id, worker, lease_ms, max_attempts, ttl_s)
  end
end
return found
