-- End what the clock alone ends: waiting jobs past their deadline, records, files and batches past their time to live.
-- args: ttl_s.
local now = time_text(clock())
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.deadlines_zset, '-inf', now, 'LIMIT', 0, 1000)) do
  if intact(id) and read(id, 'state')[1] == 'queued' then
    abort(id, args.ttl_s)
  else
    redis.call('ZREM', keys.deadlines_zset, id)
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
