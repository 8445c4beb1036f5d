-- Ends a job whose deadline has passed, unless a worker has started it.
-- KEYS: as job_common
-- ARGV: 3 retention seconds, 4 tombstone seconds, 5 error
-- Returns 'over' where the job is final or gone, 'started', or {'expired', model}.
-- include job_common
if not status or final then return 'over' end
if redis.call('HEXISTS', JOB, 'started_at') == 1 then
  heal('ZREM', DEADLINES, ID)
  return 'started'
end
finish('expired', tonumber(ARGV[3]), tonumber(ARGV[4]), {error = ARGV[5]})
return ended('expired')
