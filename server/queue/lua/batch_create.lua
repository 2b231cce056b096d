-- Create a batch. args: id, owner, input_file_id, metadata (JSON text), fingerprint of the request, expires_s until
-- it expires, ttl_s of an ended one. Returns "new", "known" (the same request made it) or "differs" (another did);
-- safe to repeat.
local id, owner, batch, now = args.id, args.owner, keys.batch_hash(args.id), clock()
if redis.call('EXISTS', batch) == 1 then
  return redis.call('HGET', batch, 'fingerprint') == args.fingerprint and 'known' or 'differs'
end
redis.call('HSET', batch, 'status', 'validating', 'owner', owner, 'input_file_id', args.input_file_id,
  'metadata', args.metadata, 'fingerprint', args.fingerprint, 'created_at', time_text(now),
  'expires_at', time_text(now + args.expires_s))
redis.call('ZADD', keys.batches_zset, time_text(now), id)
redis.call('ZADD', keys.batch_list(owner), time_text(now), id)
redis.call('ZREMRANGEBYSCORE', keys.batch_list(owner), '-inf', time_text(now - args.expires_s - args.ttl_s))
return 'new'
