-- Removes a job from the queue and deletes RQ's record of it. (Not a transaction: see lease_end.)
-- KEYS: 1 the list that holds its id: waiting or dequeued jobs, 2 RQ's record of the job,
--       3 deadlines of jobs that wait for a first worker
-- ARGV: 1 job id
-- include heal
heal('LREM', KEYS[1], 0, ARGV[1])
redis.call('DEL', KEYS[2])
heal('ZREM', KEYS[3], ARGV[1])
