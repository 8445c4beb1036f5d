-- Starts an attempt: the caller's token becomes the job's fence.
-- KEYS: as job_common
-- ARGV: 3 token, 4 worker name, 5 now, 6 most attempts, 7 retention seconds, 8 tombstone seconds,
--       9 error where the attempts are used up, 10 error where the deadline has passed
-- Returns 'claimed', 'missing', the final status, or {status, model} where this call ended the job.
-- include job_common
local token, now, retention, tombstone = ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])
if not status then return 'missing' end
if final then return ended_by(token) and ended(status) or status end
-- Repeated after a lost answer: the fence is removed where a job ends or goes back to the queue.
if redis.call('HGET', JOB, 'fence') == token then return 'claimed' end
redis.call('ZREM', DEADLINES, ID)
local deadline = redis.call('HGET', JOB, 'deadline_at')
-- The deadline limits the wait for a first worker; a job that was returned has had one.
local started = redis.call('HEXISTS', JOB, 'started_at') == 1
if not started and deadline and now > tonumber(deadline) then
  finish('expired', now, retention, tombstone, {error = ARGV[10], ended_by = token})
  return ended('expired')
end
if redis.call('HINCRBY', JOB, 'attempt', 1) > tonumber(ARGV[6]) then
  finish('failed', now, retention, tombstone, {error = ARGV[9], ended_by = token})
  return ended('failed')
end
redis.call('HSETNX', JOB, 'started_at', ARGV[5])
redis.call('HSET', JOB, 'status', 'processing', 'fence', token, 'worker', ARGV[4], 'step', 0)
emit_status('processing')
return 'claimed'
