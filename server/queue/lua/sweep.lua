-- End what the clock alone ends: waiting jobs past their deadline, records past their time to live. args: ttl_s.
local now = time_text(clock())
for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys.deadlines_zset, '-inf', now, 'LIMIT', 0, 1000)) do
  if intact(id) and read(id, 'state')[1] == 'queued' then
    abort(id, args.ttl_s)
  else
    redis.call('ZREM', keys.deadlines_zset, id)
  end
end
local expired = redis.call('ZRANGEBYSCORE', keys.ended_zset, '-inf', now, 'LIMIT', 0, 1000)
for _, id in ipairs(expired) do
  local owner = string.match(redis.call('GET', keys.tombstone(id)) or '', ' (.*)$') or ''
  redis.call('ZREM', keys.jobs_zset(owner), id)
  redis.call('ZREM', keys.ended_zset, id)
end
if #expired > 0 then count('expired', #expired) end
return #expired
