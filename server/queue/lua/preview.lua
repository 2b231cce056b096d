-- Store a preview and announce it. args: id, token, index of the image, number of the preview, ttl_s; ARGV[2] is the
-- file.
local id, index, number = args.id, args.index, args.number
local f = read_leased(id, args.token, 'result_ttl_s')
if not f then return 'fenced' end
redis.call('SET', keys.preview_bytes(id, index, number), ARGV[2], 'EX', f[3] or args.ttl_s)
emit(id, 'partial_image', index .. ' ' .. number)
return 'ok'
