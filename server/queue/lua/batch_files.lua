-- Keep files that lines of a batch name as images until the batch ends, or release those of one that has ended. args:
-- id, files, and expires_s, how long at most; absent to release them. Files of other owners are left out. Safe to repeat.
-- Changes nothing where the status says otherwise: a gateway that stalled while it validated the file would keep files
-- for a batch that ended meanwhile, or release those of one that another gateway goes on with.
local id, now = args.id, clock()
local f = redis.call('HMGET', keys.batch_hash(id), 'owner', 'input_file_id', 'status')
local owner, named, status = f[1], keys.batch_files_zset(id), f[3]
if args.expires_s then
  if status ~= 'validating' then return end
elseif status and not BATCH_OVER[status] then
  return
end
for _, file in ipairs(args.files) do
  if file == f[2] then -- which has the batch as its reader anyway
  elseif not args.expires_s then
    redis.call('ZREM', keys.file_readers_zset(file), id)
    redis.call('ZREM', named, file)
    keep_content(file, owner or '')
  elseif owner and redis.call('HGET', keys.file_hash(file), 'owner') == owner then
    redis.call('ZADD', keys.file_readers_zset(file), time_text(now + args.expires_s), id)
    redis.call('ZADD', named, time_text(now), file)
    redis.call('EXPIRE', named, args.expires_s)
    keep_content(file, owner)
  end
end
