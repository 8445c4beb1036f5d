"""The Lua scripts behind `service.core.transitions`, one a change of a job.

Each is given the job's record as KEYS[1] and its event stream as KEYS[2].
"""

from typing import Final

from service.core import redis_keys

# What all of them begin with.
_EMIT: Final = (
    f"local id = string.sub(KEYS[1], {len(redis_keys.job('')) + 1})"
    + """
local function emit(name, data)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'event', name, 'data', data)
end
local function finish(status, now, keep, tombstone, fields)
  redis.call('HSET', KEYS[1], 'status', status, 'completed_at', now, 'expires_at', now + keep)
  for name, value in pairs(fields) do redis.call('HSET', KEYS[1], name, value) end
  redis.call('HDEL', KEYS[1], 'fence')
  local owner = redis.call('HGET', KEYS[1], 'owner')
  redis.call('ZREM', 'ACTIVE' .. owner, id)
  if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
    redis.call('ZADD', 'OUTBOX', now, id)
  end
  emit('status', cjson.encode({status = status}))
  emit('done', cjson.encode({status = status}))
  redis.call('EXPIRE', KEYS[1], keep + tombstone)
  redis.call('EXPIRE', KEYS[2], keep)
end
-- The answer to the call that has ended the job, and to no other: so each end is told once.
local function ended(answer)
  local whole, request = pcall(cjson.decode, redis.call('HGET', KEYS[1], 'request') or '')
  local model = whole and type(request) == 'table' and request.model
  return {answer, type(model) == 'string' and model or ''}
end
-- A worker may ask for the same end twice, when the first answer was lost on its way.
local function ended_by(token)
  return token ~= '' and redis.call('HGET', KEYS[1], 'ended_by') == token
end
local status = redis.call('HGET', KEYS[1], 'status')
""".replace("ACTIVE", redis_keys.active_jobs("")).replace("OUTBOX", redis_keys.OUTBOX)
)

# ARGV: events kept, token, worker, now, attempt cap, keep, tombstone, errors (exhausted, expired)
CLAIM: Final = (
    _EMIT
    + """
if not status then return 'missing' end
if status ~= 'queued' and status ~= 'processing' then
  return ended_by(ARGV[2]) and ended(status) or status
end
-- Asked again, when the first answer was lost: the fence goes where a job ends or is handed back.
if redis.call('HGET', KEYS[1], 'fence') == ARGV[2] then return 'claimed' end
local now, keep, tombstone = tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7])
redis.call('ZREM', 'DEADLINES', id)
local deadline = redis.call('HGET', KEYS[1], 'deadline_at')
-- It is for the wait for a first worker: a job that was handed back has had one.
local started = redis.call('HEXISTS', KEYS[1], 'started_at') == 1
if not started and deadline and now > tonumber(deadline) then
  finish('expired', now, keep, tombstone, {error = ARGV[9], ended_by = ARGV[2]})
  return ended('expired')
end
if redis.call('HINCRBY', KEYS[1], 'attempt', 1) > tonumber(ARGV[5]) then
  finish('failed', now, keep, tombstone, {error = ARGV[8], ended_by = ARGV[2]})
  return ended('failed')
end
redis.call('HSETNX', KEYS[1], 'started_at', ARGV[4])
redis.call('HSET', KEYS[1], 'status', 'processing', 'fence', ARGV[2], 'worker', ARGV[3], 'step', 0)
emit('status', cjson.encode({status = 'processing'}))
return 'claimed'
"""
).replace("DEADLINES", redis_keys.DEADLINES)

# ARGV: events kept, now, keep, tombstone, error
EXPIRE: Final = (
    _EMIT
    + """
if status ~= 'queued' and status ~= 'processing' then return 'over' end
if redis.call('HEXISTS', KEYS[1], 'started_at') == 1 then
  redis.call('ZREM', 'DEADLINES', id)
  return 'started'
end
finish('expired', tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), {error = ARGV[5]})
return ended('expired')
"""
).replace("DEADLINES", redis_keys.DEADLINES)

# ARGV: events kept, token, step, event name, event data
PROGRESS: Final = (
    _EMIT
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return status or 'missing' end
if ARGV[4] == 'progress' then redis.call('HSET', KEYS[1], 'step', ARGV[3]) end
emit(ARGV[4], ARGV[5])
return 'claimed'
"""
)

# ARGV: events kept, token ('' from the API), new status, now, keep, tombstone, JSON of fields
FINISH: Final = (
    _EMIT
    + """
if not status then return 'missing' end
if status ~= 'queued' and status ~= 'processing' then
  return status == ARGV[3] and ended_by(ARGV[2]) and ended(status) or 'already ' .. status
end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return 'lost' end
redis.call('HSET', KEYS[1], 'ended_by', ARGV[2])
finish(ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), cjson.decode(ARGV[7]))
return ended(ARGV[3])
"""
)

# ARGV: events kept, token, change of the attempt counter
HAND_BACK: Final = (
    _EMIT
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return status or 'missing' end
redis.call('HSET', KEYS[1], 'status', 'queued', 'step', 0)
redis.call('HINCRBY', KEYS[1], 'attempt', ARGV[3])
redis.call('HDEL', KEYS[1], 'fence', 'worker')
emit('status', cjson.encode({status = 'queued'}))
return 'queued'
"""
)
