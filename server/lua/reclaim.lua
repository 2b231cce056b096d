-- Jobs whose lease has lapsed, as leases of ours. ARGV: 1 model, 2 worker, 3 lease_ms, 4 max attempts, 5 ttl_s, 6 count.
-- A job that we hold ourselves is renewed instead: our renewal was late, and nobody else was quicker.
local model, worker, lease_ms, max_attempts, ttl_s, count =
  ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local found = {}
local lapsed = redis.call('ZRANGEBYSCORE', key('leases', model), '-inf', text(clock()), 'LIMIT', 0, 100)
for _, id in ipairs(lapsed) do
  if #found >= count then break end
  if redis.call('HGET', key('job', id), 'worker') == worker then
    hold(id, lease_ms)
  else
    found[#found + 1] = lease(id, worker, lease_ms, max_attempts, ttl_s)
  end
end
return found
