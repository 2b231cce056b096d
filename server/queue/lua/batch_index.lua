-- Store where the lines of a batch begin in its file, and keep the file for it. args: id, lines, bytes that a line's error
-- may take (line_bytes), expires_s, limits: max_key_bytes, max_bytes; ARGV[2] is the index. Returns {outcome, bytes in
-- use}: ok, gone (the file was deleted), moved (the batch was canceled), key_bytes or bytes. Safe to repeat.
local id, batch, now = args.id, keys.batch_hash(args.id), clock()
local f = redis.call('HMGET', batch, 'status', 'owner', 'input_file_id', 'bytes')
if f[1] ~= 'validating' then return {'moved', ''} end
local owner, file, before = f[2], f[3], read_number(f[4])
if redis.call('EXISTS', keys.file_bytes(file), keys.file_object_hash(file)) == 0 then return {'gone', ''} end
if redis.call('EXISTS', keys.batch_index(id)) == 0 then
  local more = #ARGV[2] + args.lines * args.line_bytes
  local refused = memory_refusal(owner, more, args.limits)
  if refused then return refused end
  forget(stored_name(id, owner, before))
  keep(id, owner, before + more, now + args.expires_s)
  redis.call('HSET', batch, 'bytes', before + more)
  redis.call('SET', keys.batch_index(id), ARGV[2], 'EX', args.expires_s)
end
redis.call('ZADD', keys.file_readers_zset(file), time_text(now + args.expires_s), id)
keep_content(file, owner)
return {'ok', ''}
