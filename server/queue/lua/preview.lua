-- Store a preview and announce it. args: id, token, index of the image, number of the preview, ttl_s; ARGV[2] is the
-- file.
local id, index, number = args.id, args.index, args.number
local f = read_leased(id, args.token, 'result_ttl_s', 'owner')
if not f then return 'fenced' end
local preview = keys.preview_bytes(id, index, number)
local more = #ARGV[2] - redis.call('STRLEN', preview) -- an earlier attempt may have stored it
redis.call('SET', preview, ARGV[2], 'EX', f[3] or args.ttl_s)
add_bytes(keys.job_hash(id), 'bytes', more)
charge(f[4] or '', more)
emit(id, 'partial_image', index .. ' ' .. number)
return 'ok'
