-- Lists jobs whose deadline has passed and that no worker has started.
-- KEYS: 1 deadlines of jobs that wait for a first worker
-- ARGV: 1 most ids
-- include heal
local now, overdue = redis.call('TIME')[1], {}
for _, id in ipairs(heal('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  if string.find(id, '^[%w_-]+$') then
    overdue[#overdue + 1] = id
  else
    redis.call('ZREM', KEYS[1], id)  -- no job has such an id, and the client may not decode it
  end
end
return overdue
