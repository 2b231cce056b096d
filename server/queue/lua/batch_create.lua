-- Make a batch, once. ARGV: 1 id, 2 owner, 3 id of its file, 4 metadata as JSON, 5 hash of what was asked, 6 seconds until
-- it expires, 7 ttl_s of one that is over. Returns "new", "known": this very request made it, or "differs": another did.
local id, owner, batch, now = ARGV[1], ARGV[2], key('batch', ARGV[1]), clock()
if redis.call('EXISTS', batch) == 1 then
  return redis.call('HGET', batch, 'asked') == ARGV[5] and 'known' or 'differs'
end
redis.call('HSET', batch, 'status', 'validating', 'owner', owner, 'input_file_id', ARGV[3], 'metadata', ARGV[4],
  'asked', ARGV[5], 'created_at', text(now), 'expires_at', text(now + ARGV[6]))
redis.call('ZADD', key('batches'), text(now), id)
redis.call('ZADD', key('batch_list', owner), text(now), id)
redis.call('ZREMRANGEBYSCORE', key('batch_list', owner), '-inf', text(now - ARGV[6] - ARGV[7]))
return 'new'
