-- Writes an event of a running job, and its step where the event is `progress`.
-- KEYS: 1 and 2 of job_common
-- ARGV: 3 token, 4 step, 5 event name, 6 event data
-- Returns 'claimed', or the status ('missing' without a record) where the token is not the fence.
-- include job_common
if not status or redis.call('HGET', JOB, 'fence') ~= ARGV[3] then return status or 'missing' end
if ARGV[5] == 'progress' then redis.call('HSET', JOB, 'step', ARGV[4]) end
emit(ARGV[5], ARGV[6])
return 'claimed'
