-- Show a picture half done. ARGV: 1 id, 2 token, 3 image index, 4 number of the preview, 5 file, 6 ttl_s.
local id, token, index, number, file, ttl_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local f = read(id, 'state', 'token', 'result_ttl_s')
if not f[1] or TERMINAL[f[1]] or f[2] ~= token then return 'fenced' end
redis.call('SET', key('preview', id, index, number), file, 'EX', f[3] or ttl_s)
tell(id, 'partial_image', index .. ' ' .. number)
return 'ok'
