-- Create a batch. args: id, owner, input_file_id, metadata (JSON text), endpoint, fingerprint of the request, expires_s
-- until it expires, ttl_s of an ended one, bytes that it takes without its lines, trace (a traceparent, or nothing),
-- limits: max_batches, max_listed, and max_key_bytes, max_bytes (0: any number). Returns {outcome, amount}: new, known
-- (the same request made it), differs (another did), or the limit that refuses it, batches, listed, key_bytes or bytes,
-- and how much of it is used. Safe to repeat.
local id, owner, batch, now, limits = args.id, args.owner, keys.batch_hash(args.id), clock(), args.limits
if redis.call('EXISTS', batch) == 1 then
  return {redis.call('HGET', batch, 'fingerprint') == args.fingerprint and 'known' or 'differs', ''}
end
local listed, open = keys.batch_list(owner), keys.open_batches_zset(owner)
redis.call('ZREMRANGEBYSCORE', listed, '-inf', time_text(now - args.expires_s - args.ttl_s))
redis.call('ZREMRANGEBYSCORE', open, '-inf', time_text(now))
local unfinished, all = redis.call('ZCARD', open), redis.call('ZCARD', listed)
if limits.max_batches > 0 and unfinished >= limits.max_batches then return {'batches', tostring(unfinished)} end
if all >= limits.max_listed then return {'listed', tostring(all)} end
local refused = memory_refusal(owner, args.bytes, limits)
if refused then return refused end
redis.call('HSET', batch, 'status', 'validating', 'owner', owner, 'input_file_id', args.input_file_id,
  'metadata', args.metadata, 'fingerprint', args.fingerprint, 'created_at', time_text(now),
  'expires_at', time_text(now + args.expires_s), 'bytes', args.bytes, 'endpoint', args.endpoint)
if args.trace then redis.call('HSET', batch, 'trace', args.trace) end
redis.call('ZADD', keys.batches_zset, time_text(now), id)
redis.call('ZADD', listed, time_text(now), id)
redis.call('ZADD', open, time_text(now + args.expires_s), id)
for _, each in ipairs({listed, open}) do redis.call('EXPIRE', each, args.expires_s + args.ttl_s) end
keep(id, owner, args.bytes, now + args.expires_s + args.ttl_s)
return {'new', ''}
