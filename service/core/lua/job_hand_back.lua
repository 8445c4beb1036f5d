-- Puts a claimed job back to queued.
-- KEYS: 1 and 2 of job_common
-- ARGV: 3 token, 4 change of the attempt counter
-- Returns 'queued', or the status ('missing' without a record) where the token is not the fence.
-- include job_common
if not status or redis.call('HGET', JOB, 'fence') ~= ARGV[3] then return status or 'missing' end
redis.call('HDEL', JOB, 'fence', 'worker')
redis.call('HSET', JOB, 'status', 'queued', 'step', 0)
count_attempt(ARGV[4])
emit_status('queued')
return 'queued'
