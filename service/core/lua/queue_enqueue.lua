-- Runs the commands of a transaction unless the queue is full. (A transaction cannot ask how long
-- the queue is.)
-- KEYS: 1 waiting jobs, then the key of each command
-- ARGV: 1 most jobs that may wait (-1 for any number), then for each command the number of its
--       words without the key, and the words
-- Returns how many jobs wait then, or 0 where the queue is full.
-- include heal
local most, at = tonumber(ARGV[1]), 2
if most >= 0 and heal('LLEN', KEYS[1]) >= most then return 0 end
for index = 2, #KEYS do
  local last = at + tonumber(ARGV[at])
  heal(ARGV[at + 1], KEYS[index], unpack(ARGV, at + 2, last))
  at = last + 1
end
return redis.call('LLEN', KEYS[1])
