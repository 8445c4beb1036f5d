-- Ends a job for good.
-- KEYS: as job_common
-- ARGV: 3 token ('' from the API, which may end any job), 4 final status,
--       5 retention seconds, 6 tombstone seconds, 7 JSON object of further fields
-- Returns {status, model}, 'missing', 'already <status>' where the job is final, 'lost' where the
-- token is not the fence.
-- include job_common
local token, wanted = ARGV[3], ARGV[4]
if not status then return 'missing' end
if final then return status == wanted and ended_by(token) and ended(status) or 'already ' .. status end
if token ~= '' and redis.call('HGET', JOB, 'fence') ~= token then return 'lost' end
local fields = cjson.decode(ARGV[7])
fields.ended_by = token
finish(wanted, tonumber(ARGV[5]), tonumber(ARGV[6]), fields)
return ended(wanted)
