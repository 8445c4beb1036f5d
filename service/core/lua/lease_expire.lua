-- Returns jobs to the front of the queue whose lease has run out.
-- KEYS: 1 started jobs by the end of their lease, 2 waiting jobs, then RQ's record of each job
-- ARGV: for each record the job id and the member of the started jobs
-- Returns the ids of the jobs that were returned.
-- include heal
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local expired = {}
for index = 3, #KEYS do
  local id, member = ARGV[2 * index - 5], ARGV[2 * index - 4]
  local until_time = heal('ZSCORE', KEYS[1], member)
  if until_time and tonumber(until_time) <= now then
    redis.call('ZREM', KEYS[1], member)
    table.insert(expired, {id = id, record = KEYS[index]})
  end
end
if #expired == 0 then return {} end
-- A job may have been started again by another worker, under another member.
local running = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  running[string.match(member, '^(.*):[^:]*$') or member] = true
end
local returned = {}
for _, job in ipairs(expired) do
  if not running[job.id] and redis.call('EXISTS', job.record) == 1 then
    running[job.id] = true
    heal('HSET', job.record, 'status', 'queued')
    heal('LPUSH', KEYS[2], job.id)
    table.insert(returned, job.id)
  end
end
return returned
