-- The next waiting job of a model, as a lease. ARGV: 1 model, 2 worker, 3 lease_ms, 4 max attempts, 5 ttl_s, 6 call,
-- 7 ageing_s, 8 least time it must have waited. Returns {} if there is none.
-- Safe to repeat: `call` names one call, so that a repetition after a lost reply gets the same job and no other try.
local model, worker, lease_ms, max_attempts, ttl_s, call, ageing_s, patience_s =
  ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local memo = key('take', worker)
local known = redis.call('HMGET', memo, 'call', 'id')
if known[1] == call then return describe(known[2]) end

-- Ageing: who has waited long enough goes up one class, at most a few per call.
local now = clock()
for i = 2, #CLASSES do
  local old = redis.call('ZRANGEBYSCORE', key('since', model, CLASSES[i]), '-inf', text(now - ageing_s), 'LIMIT', 0, 8)
  for _, id in ipairs(old) do
    quit(id, false)
    redis.call('HSET', key('job', id), 'class', CLASSES[i - 1])
    join(id)
  end
end

for _, class in ipairs(CLASSES) do
  while true do
    local caller = redis.call('ZRANGE', key('ring', model, class), 0, 0)[1]
    if not caller then break end
    local id = redis.call('ZRANGE', key('line', model, class, caller), 0, 0)[1]
    local due = redis.call('HGET', key('job', id), 'deadline')
    if due and tonumber(due) <= now then
      abort(id, ttl_s)
    elseif tonumber(redis.call('ZSCORE', key('since', model, class), id)) > now - patience_s then
      return {}
    else
      local found = lease(id, worker, lease_ms, max_attempts, ttl_s)
      if found then
        redis.call('HSET', memo, 'call', call, 'id', id)
        redis.call('EXPIRE', memo, 60)
        return found
      end
    end
  end
end
return {}
