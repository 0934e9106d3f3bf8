"""The state machine of a job as Lua: Redis runs each script whole, so no two changes can interleave.

Every script keeps three rules: a final job never changes status again (but to expired), only the attempt that
holds the job may report or end it, and a job is in its profile's waiting set exactly while it is queued.
"""

# KEYS job, waiting, index, expiry, sequence. ARGV id, base, now, gives_up_at, max_waiting.
# -> sequence, 0 when the queue is full, -1 when the id is taken
CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then return 0 end
local sequence = redis.call('INCR', KEYS[5])
redis.call('HSET', KEYS[1], 'base', ARGV[2], 'status', 'queued', 'sequence', sequence, 'version', 1,
           'created_at', ARGV[3], 'expires_at', ARGV[4], 'attempts', 0)
redis.call('ZADD', KEYS[2], sequence, ARGV[1])
redis.call('ZADD', KEYS[3], sequence, ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1])
return sequence
"""

# KEYS job, waiting. ARGV id, attempt_id, now. -> 1 the attempt holds the job, 0 there is nothing to run
BEGIN = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], 'status', 'running', 'attempt_id', ARGV[2], 'started_at', ARGV[3])
redis.call('HDEL', KEYS[1], 'progress')
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
"""

# KEYS job. ARGV attempt_id, progress. -> 'continue', 'cancel' or 'fenced'
PROGRESS = """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id', 'cancel_requested')
if held[1] ~= 'running' or held[2] ~= ARGV[1] then return 'fenced' end
if held[3] then return 'cancel' end
redis.call('HSET', KEYS[1], 'progress', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 'continue'
"""

# KEYS job, expiry, counters, durations.
# ARGV id, attempt_id, status, outcome, now, expires_at, counter, kept_durations
# -> 1 published, 0 fenced
FINISH = """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id', 'started_at')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'outcome', ARGV[4],
           'finished_at', ARGV[5], 'expires_at', ARGV[6])
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
redis.call('HINCRBY', KEYS[3], ARGV[7], 1)
if ARGV[3] == 'succeeded' then
  redis.call('LPUSH', KEYS[4], string.format('%.3f', tonumber(ARGV[5]) - tonumber(held[3])))
  redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[8]) - 1)
end
return 1
"""

# KEYS job, waiting. ARGV id, attempt_id. -> 1 waiting again at its old place, 0 fenced
RELEASE = """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id', 'sequence')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued')
redis.call('HDEL', KEYS[1], 'attempt_id', 'progress', 'started_at')
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('ZADD', KEYS[2], held[3], ARGV[1])
return 1
"""

# KEYS job, waiting, expiry, counters. ARGV id, now, expires_at, counter. -> status before, nil without a job
CANCEL = """
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'queued' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HSET', KEYS[1], 'status', 'canceled', 'finished_at', ARGV[2], 'expires_at', ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'version', 1)
  redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
  redis.call('HINCRBY', KEYS[4], ARGV[4], 1)
elseif status == 'running' then
  if redis.call('HSET', KEYS[1], 'cancel_requested', 1) == 1 then
    redis.call('HINCRBY', KEYS[1], 'version', 1)
  end
end
return status
"""

# KEYS job, waiting, index, expiry. ARGV id, force. -> 1 gone, 0 still queued or running (or never there)
DELETE = """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
if ARGV[2] == '0' and (status == 'queued' or status == 'running') then return 0 end
redis.call('DEL', KEYS[1])
for i = 2, 4 do redis.call('ZREM', KEYS[i], ARGV[1]) end
return 1
"""

# KEYS job, waiting, index, expiry. ARGV id, now, tombstone_seconds. -> 1 expired now, 0 not due
EXPIRE = """
local due = redis.call('ZSCORE', KEYS[4], ARGV[1])
if not due or tonumber(due) > tonumber(ARGV[2]) then return 0 end
for i = 2, 4 do redis.call('ZREM', KEYS[i], ARGV[1]) end
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
redis.call('HSET', KEYS[1], 'status', 'expired')
redis.call('HDEL', KEYS[1], 'attempt_id', 'progress')
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
