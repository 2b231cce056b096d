-- Make a file usable whose content is stored, until it expires. args: id, owner. Returns 1, or 0 if its record or content
-- is gone. Safe to repeat.
local id, owner, file = args.id, args.owner, keys.file_hash(args.id)
local f = redis.call('HMGET', file, 'owner', 'expires_at')
if f[1] ~= owner or redis.call('EXISTS', keys.file_bytes(id), keys.file_object_hash(id)) == 0 then return 0 end
redis.call('HDEL', file, 'unready')
redis.call('PEXPIREAT', file, math.floor(1000 * tonumber(f[2])))
return keep_content(id, owner) and 1 or 0
