-- Claim due entries of a sorted set that several gateways work on: each goes to one of them.
-- args: entries (the key), visibility_timeout_s until an entry is due again if its gateway dies, count.
local now = clock()
local due = redis.call('ZRANGEBYSCORE', args.entries, '-inf', time_text(now), 'LIMIT', 0, args.count)
for _, id in ipairs(due) do redis.call('ZADD', args.entries, time_text(now + args.visibility_timeout_s), id) end
return due
