-- Due entries of a list that many gateways work on, each for one of them for a while.
-- ARGV: 1 which list, 2 seconds until an entry is due again if its taker dies, 3 most entries.
local list, now = key(ARGV[1]), clock()
local due = redis.call('ZRANGEBYSCORE', list, '-inf', text(now), 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', list, text(now + ARGV[2]), id) end
return due
