-- Counts one request: the generic cell rate algorithm (ITU-T I.371), one number a caller.
-- Times are in microseconds.
-- KEYS: 1 when the caller's next request would be due at an even pace
-- ARGV: 1 requests a minute
-- Returns {1 where granted, microseconds to wait, microseconds the caller is ahead of the pace}.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local period, quota = 60000000, tonumber(ARGV[1])
local step = period / quota
local kept = redis.pcall('GET', KEYS[1])
local due = type(kept) == 'string' and tonumber(kept) or now
-- Also where the key is damaged: no caller is ever further ahead than this.
if not (due > now and due <= now + period + 2 * step) then due = now end
local ahead = due - now
if ahead + step > period + 1 then return {0, math.ceil(ahead + step - period), ahead} end
-- A removal first, so that polls are answered on a full Redis as well (see job_common).
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], string.format('%.0f', due + step), 'PX', 61000)
return {1, 0, ahead + step}
