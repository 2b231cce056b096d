-- Create the record of a file, whose content is stored next: file_ready.lua then makes it usable, and without that it is
-- gone after unready_s. args: id, owner, filename, purpose, size_bytes, unready_s, ttl_s, list_ttl_s (the longest of any
-- file), object, its name if the content lies in FLUID_RESULTS, limits: max_files, and max_key_bytes, max_bytes (0: any
-- number). Returns {outcome, amount, now}: new, or the limit that refuses it, files, key_bytes or bytes, and how much of
-- it is used.
local id, owner, now, list = args.id, args.owner, clock(), keys.file_list(args.owner)
redis.call('ZREMRANGEBYSCORE', list, '-inf', time_text(now - args.list_ttl_s))
local files, bytes = redis.call('ZCARD', list), args.size_bytes + FILE_RECORD_BYTES
if files >= args.limits.max_files then return {'files', tostring(files), ''} end
local in_redis = args.object and FILE_RECORD_BYTES
local refused = memory_refusal(owner, bytes, args.limits, in_redis)
if refused then return {refused[1], refused[2], ''} end
redis.call('HSET', keys.file_hash(id), 'filename', args.filename, 'purpose', args.purpose, 'unready', 1,
  'size_bytes', args.size_bytes, 'owner', owner, 'created_at', time_text(now), 'expires_at', time_text(now + args.ttl_s))
redis.call('EXPIRE', keys.file_hash(id), args.unready_s)
redis.call('ZADD', list, time_text(now), id)
redis.call('EXPIRE', list, args.list_ttl_s)
keep(id, owner, bytes, now + args.unready_s, in_redis)
if args.object then
  local outside = keys.file_object_hash(id)
  redis.call('HSET', outside, 'name', args.object, 'size_bytes', args.size_bytes)
  redis.call('EXPIRE', outside, args.unready_s)
  discard(args.object, now + args.unready_s)
end
return {'new', '', time_text(now)}
