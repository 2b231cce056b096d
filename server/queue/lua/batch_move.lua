-- Move a batch to another status, if its status is still one of `from`: a cancel while the file is validated
-- must not be overwritten. args: id, to, from (list of statuses), ttl_s of an ended batch, fields to write with it.
-- Returns 1, or 0 if nothing was changed.
local id, to, batch = args.id, args.to, keys.batch_hash(args.id)
local status, seen = redis.call('HGET', batch, 'status'), false
for _, from in ipairs(args.from) do seen = seen or status == from end
if not seen then return 0 end
redis.call('HSET', batch, 'status', to, to .. '_at', time_text(clock()))
for field, value in pairs(args.fields) do redis.call('HSET', batch, field, value) end
if BATCH_OVER[to] then
  redis.call('ZREM', keys.batches_zset, id)
  for _, each in ipairs({batch, keys.batch_lines(id), keys.batch_errors(id)}) do
    redis.call('EXPIRE', each, args.ttl_s)
  end
elseif to == 'cancelling' then
  redis.call('ZADD', keys.batches_zset, time_text(clock()), id) -- its next turn is now
end
return 1
