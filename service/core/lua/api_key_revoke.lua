-- Deletes an API key, and notes where it was the last one: that keys are missing on purpose.
-- KEYS: 1 records of all keys by their ids, 2 note that all were revoked
-- ARGV: 1 id of the key
-- Returns 1 where there was one.
local deleted = redis.call('HDEL', KEYS[1], ARGV[1])
if deleted == 1 and redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SET', KEYS[2], '1') end
return deleted
