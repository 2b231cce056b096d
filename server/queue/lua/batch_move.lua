-- Move a batch to another status, if it still has one of those that the mover saw: a cancel while the file is validated
-- must not be overwritten. ARGV: 1 id, 2 to, 3 from: statuses with spaces between, 4 ttl_s of a batch that is over,
-- then fields and values that come with it. Returns 1, or 0 if nothing was changed.
local id, to, batch = ARGV[1], ARGV[2], key('batch', ARGV[1])
local OVER = {completed = true, failed = true, expired = true, cancelled = true}
local now = redis.call('HGET', batch, 'status')
if not now or not string.find(' ' .. ARGV[3] .. ' ', ' ' .. now .. ' ', 1, true) then return 0 end
redis.call('HSET', batch, 'status', to, to .. '_at', text(clock()))
for i = 5, #ARGV, 2 do redis.call('HSET', batch, ARGV[i], ARGV[i + 1]) end
if OVER[to] then
  redis.call('ZREM', key('batches'), id)
  for _, kind in ipairs({'batch', 'batch_lines', 'batch_errors'}) do redis.call('EXPIRE', key(kind, id), ARGV[4]) end
elseif to == 'cancelling' then
  redis.call('ZADD', key('batches'), text(clock()), id) -- its next turn is now
end
return 1
