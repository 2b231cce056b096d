-- Let lines of a batch that ends expire with it: they were kept for as long as the batch could have lasted. args: id,
-- first and last line, ttl_s of the ended batch, image_ttl_s. Safe to repeat, and never keeps a line longer.
local expires_at = clock() + args.ttl_s
for number = args.first, args.last do
  local id = string.format('%s_%d', args.id, number)
  local job = keys.job_hash(id)
  local f = redis.call('HMGET', job, 'state', 'batch', 'expires_at', 'outputs')
  if f[1] and TERMINAL[f[1]] and f[2] == args.id and f[3] and tonumber(f[3]) > expires_at then
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', keys.ended_zset, f[3], f[3])) do
      if string.find(name, id .. ' ', 1, true) == 1 then
        redis.call('ZADD', keys.ended_zset, 'XX', time_text(expires_at), name)
      end
    end
    redis.call('HSET', job, 'expires_at', time_text(expires_at))
    redis.call('EXPIRE', job, args.ttl_s)
    redis.call('EXPIRE', keys.tombstone(id), args.ttl_s + TOMBSTONE_EXTRA_S)
    for _, output in ipairs(f[4] and f[4] ~= '' and cjson.decode(f[4]) or {}) do
      redis.call('EXPIRE', keys.result_bytes(id, output.token, output.index), args.image_ttl_s)
    end
  end
end
