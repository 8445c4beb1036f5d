-- Starts an attempt: the caller's token becomes the job's fence.
-- KEYS: as job_common
-- ARGV: 3 token, 4 worker name, 5 most attempts, 6 retention seconds, 7 tombstone seconds,
--       8 error where the attempts are used up, 9 error where the deadline has passed
-- Returns 'claimed', 'missing', the final status, or {status, model} where this call ended the job.
-- include job_common
local token, retention, tombstone = ARGV[3], tonumber(ARGV[6]), tonumber(ARGV[7])
if not status then return 'missing' end
if final then return ended_by(token) and ended(status) or status end
-- Repeated after a lost answer: the fence is removed where a job ends or goes back to the queue.
if redis.call('HGET', JOB, 'fence') == token then return 'claimed' end
heal('ZREM', DEADLINES, ID)
local deadline = tonumber(redis.call('HGET', JOB, 'deadline_at') or nil)
-- The deadline limits the wait for a first worker; a job that was returned has had one.
local started = redis.call('HEXISTS', JOB, 'started_at') == 1
if not started and deadline and now > deadline then
  finish('expired', retention, tombstone, {error = ARGV[9], ended_by = token})
  return ended('expired')
end
if count_attempt(1) > tonumber(ARGV[5]) then
  finish('failed', retention, tombstone, {error = ARGV[8], ended_by = token})
  return ended('failed')
end
if not started then
  redis.call('HSET', JOB, 'started_at', time_text)
  add_webhook('start')
end
redis.call('HSET', JOB, 'status', 'processing', 'fence', token, 'worker', ARGV[4], 'step', 0)
emit_status('processing')
return 'claimed'
