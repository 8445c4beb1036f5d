-- Included by every job_*.lua.
-- KEYS: 1 the job's record, 2 its event stream; and where the script can end the job: 3 its owner's
--       active jobs, 4 deadlines of jobs that wait for a first worker, 5 webhook outbox,
--       6 the job's tombstone
-- ARGV: 1 job id, 2 most events kept in the stream; each file lists its own from 3 on
-- include heal
local JOB, EVENTS, ACTIVE, DEADLINES, OUTBOX, TOMBSTONE = unpack(KEYS)
local ID, EVENTS_KEPT = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local time_text = string.format('%.6f', now)
local status = redis.pcall('HGET', JOB, 'status')
if type(status) == 'table' then status = false end  -- a key of another type is no record
-- A state that this release does not know is not final, so that its owner can always end the job.
local final = status == 'succeeded' or status == 'failed' or status == 'canceled'
  or status == 'expired'

local function emit(name, data)
  heal('XADD', EVENTS, 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', name, 'data', data)
end

local function emit_status(value)
  emit('status', cjson.encode({status = value}))
end

-- Previews are for those who watch. Of an ended job they would be nine tenths of its bytes, so the
-- stream is written anew without them: XDEL frees nothing while a node holds other entries. Ids stay,
-- and the last one is kept, so that no event gets the id of a preview that somebody has read.
local function drop_previews()
  local kept, last = {}, nil
  local entries = heal('XRANGE', EVENTS, '-', '+')
  for _, entry in ipairs(entries) do
    last = entry[1]
    if entry[2][2] ~= 'preview' then kept[#kept + 1] = entry end
  end
  if #kept == 0 or #kept == #entries then return end
  redis.call('DEL', EVENTS)
  for _, entry in ipairs(kept) do redis.call('XADD', EVENTS, entry[1], unpack(entry[2])) end
  redis.call('XSETID', EVENTS, last)
end

-- Changes the attempt counter, and returns it; a damaged one begins anew.
local function count_attempt(change)
  local attempt = redis.pcall('HINCRBY', JOB, 'attempt', change)
  if type(attempt) == 'number' then return attempt end
  attempt = math.max(0, tonumber(change))
  redis.call('HSET', JOB, 'attempt', attempt)
  return attempt
end

-- The answer to the call that ends a job, with the job's model. No other call gets it, so each end
-- is counted once.
local function ended(answer)
  local parsed, request = pcall(cjson.decode, redis.call('HGET', JOB, 'request') or '')
  local model = parsed and type(request) == 'table' and request.model
  return {answer, type(model) == 'string' and model or ''}
end

-- A worker repeats a call whose answer was lost; it gets the same answer again.
local function ended_by(token)
  return token ~= '' and redis.call('HGET', JOB, 'ended_by') == token
end

-- A webhook of what has happened to the job, where it asked for one: its end unless it named others.
local function add_webhook(event)
  if redis.call('HEXISTS', JOB, 'webhook') == 0 then return end
  local wanted = redis.call('HGET', JOB, 'webhook_events') or 'completed'
  if not string.find(wanted, event, 1, true) then return end
  heal('ZADD', OUTBOX, now, event == 'completed' and ID or ID .. ':' .. event)
end

-- A script that ends a job begins with a removal: Redis refuses a script's writes for lack of memory
-- only until its first write, and what frees memory counts as one. So jobs also end on a full Redis.
local function finish(final_status, retention_seconds, tombstone_seconds, fields)
  redis.call('HDEL', JOB, 'fence')
  heal('ZREM', ACTIVE, ID)
  drop_previews()
  redis.call('HSET', JOB, 'status', final_status, 'completed_at', time_text,
             'expires_at', string.format('%.6f', now + retention_seconds))
  for name, value in pairs(fields) do redis.call('HSET', JOB, name, value) end
  if final_status == 'succeeded' then add_webhook('output') end
  add_webhook('completed')
  emit_status(final_status)
  emit('done', cjson.encode({status = final_status}))
  redis.call('EXPIRE', JOB, retention_seconds)
  redis.call('EXPIRE', EVENTS, retention_seconds)
  -- The record goes with its prompt; what answers 410 after it is the owner alone.
  redis.call('SET', TOMBSTONE, redis.call('HGET', JOB, 'owner') or '',
             'EX', retention_seconds + tombstone_seconds)
end
