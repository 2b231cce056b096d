-- Delete a file. args: id, owner. Its content stays while a batch reads it. Returns 1, or 0 if this owner has no such
-- file.
local LATE_S = 60 -- a write that timed out may still put the object of a file there that was never ready
local id, owner, file = args.id, args.owner, keys.file_hash(args.id)
local f = redis.call('HMGET', file, 'owner', 'size_bytes', 'unready')
if f[1] ~= owner then return 0 end
redis.call('DEL', file)
redis.call('ZREM', keys.file_list(owner), id)
if redis.call('EXISTS', keys.file_bytes(id), keys.file_object_hash(id)) > 0 then
  local late = f[3] and redis.call('HGET', keys.file_object_hash(id), 'name')
  keep_content(id, owner)
  if late then discard(late, clock() + LATE_S) end
else
  forget(stored_name(id, owner, read_number(f[2]) + FILE_RECORD_BYTES))
end
return 1
