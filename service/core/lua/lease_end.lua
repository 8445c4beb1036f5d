-- Ends a lease, and deletes what RQ keeps of the job if it is over. (Not a transaction: a full Redis
-- refuses those, even where they only delete.)
-- KEYS: 1 started jobs by the end of their lease, 2 RQ's executions of the worker, then keys to
--       delete: those of the execution, and of the job if it is over
-- ARGV: 1 member of the started jobs
-- include heal
heal('ZREM', KEYS[1], ARGV[1])
heal('SREM', KEYS[2], ARGV[1])
redis.call('DEL', unpack(KEYS, 3))
