-- Claim due entries of a sorted set that several gateways work on: each goes to one of them.
-- args: entries (the key), visibility_timeout_s until an entry is due again if its gateway dies, count.
-- An entry that is due later than any gateway could have set it is from before Redis' clock was set back: it is due now.
local LATEST = 4 -- times the visibility timeout
local now = clock()
local latest = time_text(now + LATEST * args.visibility_timeout_s)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', args.entries, latest, '+inf', 'LIMIT', 0, 100)) do
  redis.call('ZADD', args.entries, time_text(now), id)
end
local due = redis.call('ZRANGEBYSCORE', args.entries, '-inf', time_text(now), 'LIMIT', 0, args.count)
for _, id in ipairs(due) do redis.call('ZADD', args.entries, time_text(now + args.visibility_timeout_s), id) end
return due
