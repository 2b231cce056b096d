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
  local f = redis.call('HMGET', batch, 'owner', 'bytes', 'input_file_id')
  local owner, expires_at = f[1] or '', clock() + args.ttl_s
  -- Its next turn, if this gateway dies first, releases the files that its lines name: too many for one script.
  if redis.call('EXISTS', keys.batch_files_zset(id)) == 0 then redis.call('ZREM', keys.batches_zset, id) end
  redis.call('ZREM', keys.open_batches_zset(owner), id)
  for _, each in ipairs({batch, keys.batch_index(id), keys.batch_errors(id)}) do
    redis.call('EXPIRE', each, args.ttl_s)
  end
  if f[2] then redis.call('ZADD', keys.stored_zset, 'XX', time_text(expires_at), stored_name(id, owner, f[2])) end
  if f[3] and redis.call('ZADD', keys.file_readers_zset(f[3]), 'XX', 'CH', time_text(expires_at), id) == 1 then
    keep_content(f[3], owner)
  end
elseif to == 'cancelling' then
  redis.call('ZADD', keys.batches_zset, time_text(clock()), id) -- its next turn is now
end
return 1
