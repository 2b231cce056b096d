-- Store an image file before the finish. args: id, token, index of the image, ttl_s; ARGV[2] is the file. Its key carries
-- the token, and it is visible only once finish.lua names it.
if not read_leased(args.id, args.token) then return 'fenced' end
redis.call('SET', keys.result_bytes(args.id, args.token, args.index), ARGV[2], 'EX', args.ttl_s)
return 'ok'
