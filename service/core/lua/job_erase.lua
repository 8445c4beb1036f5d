-- Deletes all that Redis holds of a job. (Not a transaction: see lease_end.)
-- KEYS: 1 the job's record, 2 its event stream, 3 its tombstone, 4 its owner's jobs, 5 its owner's
--       active jobs, 6 webhook outbox, 7 attempts by its entry
-- ARGV: 1 job id
-- include heal
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
for index = 4, 5 do heal('ZREM', KEYS[index], ARGV[1]) end
for _, event in ipairs({'', ':start', ':output'}) do
  heal('ZREM', KEYS[6], ARGV[1] .. event)
  heal('HDEL', KEYS[7], ARGV[1] .. event)
end
