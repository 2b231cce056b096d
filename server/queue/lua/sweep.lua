-- End what the clock alone ends: jobs past their deadline, records, files and batches past their time to live. args:
-- ttl_s. A running job is told of its deadline by the renewal of its lease, as long as it has a worker.
local now = time_text(clock())
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.deadlines_zset, '-inf', now, 'LIMIT', 0, 1000)) do
  local f = intact(id) and read(id, 'state', 'model')
  local lease_end = f and tonumber(redis.call('ZSCORE', keys.leases_zset(f[2]), id) or '0')
  if not f or TERMINAL[f[1]] then
    redis.call('ZREM', keys.deadlines_zset, id)
  elseif f[1] == 'queued' then
    abort(id, args.ttl_s)
  elseif lease_end > clock() then
    redis.call('ZADD', keys.deadlines_zset, time_text(lease_end), id) -- the next look
  else
    redis.call('HINCRBY', keys.job_hash(id), 'token', 1)
    if read(id, 'cancel_requested')[1] ~= '1' then
      redis.call('HSET', keys.job_hash(id), 'error', cjson.encode(LATE))
    end
    finish(id, 'canceled', args.ttl_s)
  end
end
local expired = redis.call('ZRANGEBYSCORE', keys.ended_zset, '-inf', now, 'LIMIT', 0, 1000)
for _, name in ipairs(expired) do
  redis.call('ZREM', keys.ended_zset, name) -- first: a Redis whose memory is used up runs a script that begins like this
  local id, state, owner, bytes = string.match(name, '^(%S+) (%S+) (%S*) (%d+)$')
  if id then
    redis.call('ZREM', keys.jobs_zset(owner), id)
    redis.call('ZREM', keys.state_jobs_zset(owner, state), id)
    charge(owner, -tonumber(bytes))
  else -- an earlier version wrote only the id
    owner = string.match(redis.call('GET', keys.tombstone(name)) or '', ' (.*)$') or ''
    redis.call('ZREM', keys.jobs_zset(owner), name)
  end
end
if #expired > 0 then count('expired', #expired) end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', keys.stored_zset, '-inf', now, 'LIMIT', 0, 1000)) do
  forget(name)
  local id, owner = string.match(name, '^(%S+) (%S*) ')
  if id then -- or it would count as kept for a day more
    redis.call('ZREM', keys.batch_list(owner), id)
    redis.call('ZREM', keys.file_list(owner), id)
  end
end
return #expired
