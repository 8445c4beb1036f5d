-- Reads jobs and their places in the queue at one moment.
-- KEYS: 1 waiting jobs, then of each job its record and its tombstone
-- ARGV: 1 how many places of the queue are searched from each end: a search of all of it would take
--       as long as the queue is; then the id of each job
-- Returns the time in seconds, and of each job: its record as a list of names and values, the owner
-- in its tombstone or '', the jobs ahead (-1 where it does not wait, the middle of the queue where it
-- is far from both ends), and 1 where its record is none: a key of another type. Such keys must not
-- fail the jobs that are read beside them.
local most, found = tonumber(ARGV[1]), {redis.call('TIME')[1]}
for index = 2, #ARGV do
  local id, record, tombstone = ARGV[index], KEYS[2 * index - 2], KEYS[2 * index - 1]
  local fields = redis.pcall('HGETALL', record)
  local damaged = fields.err and 1 or 0
  if damaged == 1 then fields = {} end
  local owner = #fields == 0 and redis.pcall('GET', tombstone) or ''
  if type(owner) == 'table' then owner = '' end
  local ahead = -1
  if redis.pcall('HGET', record, 'status') == 'queued' then
    ahead = redis.pcall('LPOS', KEYS[1], id, 'MAXLEN', most)
      or redis.pcall('LPOS', KEYS[1], id, 'RANK', -1, 'MAXLEN', most)
    if type(ahead) == 'table' then
      ahead = 0  -- the queue is a key of another type, until the next job is queued
    elseif not ahead then
      local waiting = redis.call('LLEN', KEYS[1])
      ahead = waiting > 2 * most and math.floor(waiting / 2) or 0
    end
  end
  found[index] = {fields, owner, ahead, damaged}
end
return found
