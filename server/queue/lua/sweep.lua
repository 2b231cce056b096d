-- What is due by the clock alone: waiting jobs past their deadline, ended jobs past their time. ARGV: 1 ttl_s.
local ttl_s, now = tonumber(ARGV[1]), text(clock())
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, 1000)) do
  local state = read(id, 'state')[1]
  if state == 'queued' then abort(id, ttl_s) else redis.call('ZREM', DEADLINES, id) end
end
local gone = redis.call('ZRANGEBYSCORE', ENDED, '-inf', now, 'LIMIT', 0, 1000)
for _, id in ipairs(gone) do
  local scope = string.match(redis.call('GET', key('tomb', id)) or '', ' (.*)$') or ''
  redis.call('ZREM', key('list', scope), id)
  redis.call('ZREM', ENDED, id)
end
if #gone > 0 then redis.call('HINCRBY', COUNTERS, 'expired', #gone) end
return #gone
