-- Store the source image of an edit that is about to be accepted, for ttl_s. args: id, ttl_s, and object, the name under
-- which it is written to FLUID_RESULTS, or else ARGV[2], the image. Once the job exists its image has the job's lifetime,
-- and stays as it is: a repeated submission must not shorten it.
if args.object then
  discard(args.object, clock() + args.ttl_s)
elseif redis.call('EXISTS', keys.job_hash(args.id)) == 0 then
  redis.call('SET', keys.input_bytes(args.id), ARGV[2], 'EX', args.ttl_s)
end
