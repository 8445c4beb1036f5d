-- Begins the lease of a dequeued job.
-- KEYS: 1 dequeued jobs (RQ's intermediate list), 2 started jobs by the end of their lease,
--       3 RQ's record of the job
-- ARGV: 1 job id, 2 member of the started jobs, 3 lease seconds, 4 worker name, 5 start (ISO 8601)
-- Returns 1, or 0 where the job was returned to the queue or deleted meanwhile.
-- include heal
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
if heal('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
heal('ZADD', KEYS[2], now + ARGV[3], ARGV[2])
heal('HSET', KEYS[3], 'status', 'started', 'worker_name', ARGV[4], 'started_at', ARGV[5])
redis.call('PERSIST', KEYS[3])
return 1
