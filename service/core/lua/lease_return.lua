-- Moves a job back to the queue, if it is still where it was, so that two callers cannot double it.
-- KEYS: 1 where it is: dequeued jobs (a list) or started jobs (a sorted set), 2 waiting jobs,
--       3 RQ's record of the job
-- ARGV: 1 job id, 2 LPUSH for the front of the queue or RPUSH for its end, 3 the command that
--       removes it from KEYS[1], then that command's arguments
-- Returns 1 where it was moved.
-- include heal
if heal(ARGV[3], KEYS[1], unpack(ARGV, 4)) == 0 then return 0 end
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
heal('HSET', KEYS[3], 'status', 'queued')
heal(ARGV[2], KEYS[2], ARGV[1])
return 1
