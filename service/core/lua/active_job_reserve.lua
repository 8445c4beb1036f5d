-- Reserves one of an owner's places for jobs that run or wait.
-- KEYS: 1 the owner's active jobs, by when each counts no more
-- ARGV: 1 job id, 2 most jobs at once, 3 seconds until the reservation ends by itself
-- Returns 1, or 0 where all places are taken.
-- include heal
local now = tonumber(redis.call('TIME')[1])
heal('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
return 1
