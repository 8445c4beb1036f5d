-- Makes a webhook due later, if it is still in the outbox.
-- KEYS: 1 outbox: entries by when they are due, 2 attempts by entry
-- ARGV: 1 entry, 2 seconds until it is due, 3 change of the attempts
-- A removal first, so that it works on a full Redis as well (see job_common).
-- include heal
heal('HDEL', KEYS[2], '')
if heal('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('ZADD', KEYS[1], tonumber(redis.call('TIME')[1]) + tonumber(ARGV[2]), ARGV[1])
  if type(redis.pcall('HINCRBY', KEYS[2], ARGV[1], ARGV[3])) ~= 'number' then
    redis.call('HSET', KEYS[2], ARGV[1], 1)  -- the count was damaged
  end
end
