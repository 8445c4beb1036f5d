-- Renews leases that still hold.
-- KEYS: 1 started jobs by the end of their lease
-- ARGV: 1 lease seconds, then members of the started jobs
-- include heal
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
-- A removal first, so that it works on a full Redis as well (see job_common).
heal('ZREM', KEYS[1], '')
for index = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[index]) end
