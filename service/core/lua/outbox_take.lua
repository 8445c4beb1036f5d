-- Takes webhooks that are due, and counts an attempt for each.
-- KEYS: 1 outbox: job ids by when they are due, 2 attempts by job id
-- ARGV: 1 most to take, 2 seconds after which one that was not removed is due again
-- Returns job id, number of this attempt, job id, ...
local now = tonumber(redis.call('TIME')[1])
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), id)
  taken[#taken + 1] = id
  taken[#taken + 1] = redis.call('HINCRBY', KEYS[2], id, 1)
end
return taken
