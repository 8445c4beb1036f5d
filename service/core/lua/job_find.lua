-- Reads jobs and their places in the queue at one moment.
-- KEYS: 1 waiting jobs, then of each job its record and its tombstone
-- ARGV: 1 how many places of the queue are searched from each end: a search of all of it would take
--       as long as the queue is; then the id of each job
-- Returns the time in seconds, and of each job: its record as a list of names and values, the owner
-- in its tombstone or '', and the jobs ahead (-1 where it does not wait, the middle of the queue
-- where it is far from both ends).
local most, found = tonumber(ARGV[1]), {redis.call('TIME')[1]}
for index = 2, #ARGV do
  local id, record, tombstone = ARGV[index], KEYS[2 * index - 2], KEYS[2 * index - 1]
  local fields = redis.call('HGETALL', record)
  local owner = #fields == 0 and redis.call('GET', tombstone) or ''
  local ahead = -1
  if redis.call('HGET', record, 'status') == 'queued' then
    ahead = redis.call('LPOS', KEYS[1], id, 'MAXLEN', most)
      or redis.call('LPOS', KEYS[1], id, 'RANK', -1, 'MAXLEN', most)
    if not ahead then
      local waiting = redis.call('LLEN', KEYS[1])
      ahead = waiting > 2 * most and math.floor(waiting / 2) or 0
    end
  end
  found[index] = {fields, owner, ahead}
end
return found
