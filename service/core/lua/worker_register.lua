-- Writes or renews a worker's entry in the registry, and removes names of dead workers.
-- KEYS: 1 the entry, 2 names of registered workers by their last heartbeat
-- ARGV: 1 name, 2 entry (JSON), 3 seconds that the entry lives, 4 seconds that a name lives
-- include heal
local now = redis.call('TIME')[1]
-- First, so that it works on a full Redis as well (see job_common).
heal('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[4])
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
