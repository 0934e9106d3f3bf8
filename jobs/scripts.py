"""The state machine of a job as Lua: Redis runs each script whole, so no two changes can interleave.

Every script keeps four rules: a final job never changes status again (but to expired, and by REPLAY back to queued
when it failed or was canceled), only the attempt that holds the job may report or end it, a job is in line
(`jobs.line_scripts`) exactly while it is queued, and it has a lease exactly while it is running. A script that ends a
job also puts its webhook into the outbox, if it asked for one.
"""

from jobs.line_scripts import LINE
from jobs.webhook_scripts import TELL

# KEYS waiting, line, turns, index, expiry, sequence, batch, then one job each.
# ARGV now, gives_up_at, max_waiting, batch ('' for none), batch_seconds, owner, class, then id and base of each job.
# -> sequence of the last, 0 when the queue has no room for all of them, -1 when an id is taken
CREATE = (
    LINE
    + """
local num_jobs = #KEYS - 7
for i = 7, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return -1 end
end
if not has_room(1, num_jobs, ARGV[3]) then return 0 end
local sequence
for i = 1, num_jobs do
  local id = ARGV[6 + 2 * i]
  sequence = redis.call('INCR', KEYS[6])
  redis.call('HSET', KEYS[7 + i], 'base', ARGV[7 + 2 * i], 'status', 'queued', 'sequence', sequence, 'version', 1,
             'created_at', ARGV[1], 'expires_at', ARGV[2], 'attempts', 0)
  join(1, id, ARGV[6], ARGV[7], sequence, false)
  redis.call('ZADD', KEYS[4], sequence, id)
  redis.call('ZADD', KEYS[5], ARGV[2], id)
end
if ARGV[4] ~= '' then redis.call('SET', KEYS[7], ARGV[4], 'EX', ARGV[5]) end
return sequence
"""
)

# KEYS job, waiting, line, turns, leases. ARGV id, owner, attempt_id, now, lease_ends_at, holder.
# -> 1 the attempt holds the job, 0 there is nothing to run. A running job is never taken over here, though its lease
# be over: only RECLAIM takes it back, because it counts the attempts.
BEGIN = (
    LINE
    + """
leave(2, ARGV[1], ARGV[2])  -- also what is in line and does not wait: it would be the next for ever
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' then return 0 end
spend_turn(2, ARGV[2])
redis.call('ZADD', KEYS[5], ARGV[5], ARGV[1])
redis.call('HSET', KEYS[1], 'status', 'running', 'attempt_id', ARGV[3], 'started_at', ARGV[4], 'holder', ARGV[6])
redis.call('HDEL', KEYS[1], 'progress', 'preview')
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
"""
)

# KEYS job, leases. ARGV id, attempt_id, lease_ends_at. -> 1 renewed, 0 fenced
RENEW = """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
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

# KEYS job. ARGV attempt_id, preview. -> 1 told, 0 fenced
PREVIEW = """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id')
if held[1] ~= 'running' or held[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'preview', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
"""

# KEYS job, expiry, counters, durations, leases, webhook, outbox.
# ARGV id, attempt_id, status, outcome, now, expires_at, counter, kept_durations, run
# -> 1 published, 0 fenced
FINISH = (
    TELL
    + """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id', 'started_at')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'outcome', ARGV[4],
           'finished_at', ARGV[5], 'expires_at', ARGV[6])
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
redis.call('HINCRBY', KEYS[3], ARGV[7], 1)
if ARGV[3] == 'succeeded' then
  redis.call('LPUSH', KEYS[4], string.format('%.3f %s', tonumber(ARGV[5]) - tonumber(held[3]), ARGV[9]))
  redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[8]) - 1)
end
tell(KEYS[1], KEYS[6], KEYS[7], ARGV[1], 'job.' .. ARGV[3], ARGV[3], ARGV[5], ARGV[6])
return 1
"""
)

# KEYS job, waiting, line, turns, leases. ARGV id, owner, class, attempt_id.
# -> 1 waiting again as the next to run, 0 fenced
# A run that was put back is not charged as an attempt: its worker was told to end, nothing is wrong with the job.
RELEASE = (
    LINE
    + """
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt_id', 'sequence')
if held[1] ~= 'running' or held[2] ~= ARGV[4] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued')
redis.call('HDEL', KEYS[1], 'attempt_id', 'progress', 'preview', 'started_at', 'holder')
redis.call('HINCRBY', KEYS[1], 'attempts', -1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('ZREM', KEYS[5], ARGV[1])
join(2, ARGV[1], ARGV[2], ARGV[3], held[3], true)
return 1
"""
)

# KEYS job, waiting, line, turns, leases, expiry, counters, recoveries, webhook, outbox.
# ARGV id, owner, class, now, max_attempts, failed_outcome, expires_at, failed_counter, canceled_counter
# -> 'queued', 'failed', 'canceled', or 'held' when the lease was renewed or the job ended meanwhile
RECLAIM = (
    LINE
    + TELL
    + """
local lease = redis.call('ZSCORE', KEYS[5], ARGV[1])
if not lease or tonumber(lease) > tonumber(ARGV[4]) then return 'held' end
redis.call('ZREM', KEYS[5], ARGV[1])
local held = redis.call('HMGET', KEYS[1], 'status', 'attempts', 'cancel_requested', 'sequence')
if held[1] ~= 'running' then return 'held' end
redis.call('HINCRBY', KEYS[8], tonumber(lease) == 0 and 'worker_died' or 'lease_expired', 1)
redis.call('HDEL', KEYS[1], 'attempt_id', 'holder', 'preview')
redis.call('HINCRBY', KEYS[1], 'version', 1)
local ending, counter
if held[3] then ending, counter = 'canceled', ARGV[9]
elseif tonumber(held[2]) >= tonumber(ARGV[5]) then
  ending, counter = 'failed', ARGV[8]
  redis.call('HSET', KEYS[1], 'outcome', ARGV[6])
end
if ending then
  redis.call('HSET', KEYS[1], 'status', ending, 'finished_at', ARGV[4], 'expires_at', ARGV[7])
  redis.call('ZADD', KEYS[6], ARGV[7], ARGV[1])
  redis.call('HINCRBY', KEYS[7], counter, 1)
  tell(KEYS[1], KEYS[9], KEYS[10], ARGV[1], 'job.' .. ending, ending, ARGV[4], ARGV[7])
  return ending
end
redis.call('HSET', KEYS[1], 'status', 'queued')
redis.call('HDEL', KEYS[1], 'progress', 'started_at')
join(2, ARGV[1], ARGV[2], ARGV[3], held[4], true)
return 'queued'
"""
)

# KEYS job, waiting, line, turns, expiry, counters, webhook, outbox. ARGV id, owner, now, expires_at, counter.
# -> status before, nil without a job
CANCEL = (
    LINE
    + TELL
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'queued' then
  leave(2, ARGV[1], ARGV[2])
  redis.call('HSET', KEYS[1], 'status', 'canceled', 'finished_at', ARGV[3], 'expires_at', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'version', 1)
  redis.call('ZADD', KEYS[5], ARGV[4], ARGV[1])
  redis.call('HINCRBY', KEYS[6], ARGV[5], 1)
  tell(KEYS[1], KEYS[7], KEYS[8], ARGV[1], 'job.canceled', 'canceled', ARGV[3], ARGV[4])
elseif status == 'running' then
  if redis.call('HSET', KEYS[1], 'cancel_requested', 1) == 1 then
    redis.call('HINCRBY', KEYS[1], 'version', 1)
  end
end
return status
"""
)

# KEYS job, waiting, line, turns, index, expiry, sequence, webhook, outbox, dead.
# ARGV id, owner, class, now, gives_up_at, max_waiting.
# -> its new sequence, 0 when the queue is full, -1 when it is not failed or canceled, -2 when its time is over.
# It goes to the end of the line, and what its last life left goes, a webhook that was not delivered too: its new end
# is told anew. A late run of that life is fenced as any other.
REPLAY = (
    LINE
    + """
local held = redis.call('HMGET', KEYS[1], 'status', 'expires_at')
if held[1] ~= 'failed' and held[1] ~= 'canceled' then return -1 end
if tonumber(held[2]) <= tonumber(ARGV[4]) then return -2 end
if not has_room(2, 1, ARGV[6]) then return 0 end
local sequence = redis.call('INCR', KEYS[7])
redis.call('HDEL', KEYS[1], 'outcome', 'attempt_id', 'holder', 'progress', 'preview', 'started_at', 'finished_at',
           'cancel_requested')
redis.call('HSET', KEYS[1], 'status', 'queued', 'sequence', sequence, 'attempts', 0, 'replayed_at', ARGV[4],
           'expires_at', ARGV[5])
redis.call('HINCRBY', KEYS[1], 'replays', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
join(2, ARGV[1], ARGV[2], ARGV[3], sequence, false)
redis.call('ZADD', KEYS[5], sequence, ARGV[1])
redis.call('ZADD', KEYS[6], ARGV[5], ARGV[1])
redis.call('DEL', KEYS[8])
redis.call('ZREM', KEYS[9], ARGV[1])
redis.call('ZREM', KEYS[10], ARGV[1])
return sequence
"""
)

# KEYS job, waiting, line, turns, index, expiry, leases. ARGV id, owner, force.
# -> 1 gone, 0 still queued or running (or never there)
DELETE = (
    LINE
    + """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 0 end
if ARGV[3] == '0' and (status == 'queued' or status == 'running') then return 0 end
redis.call('DEL', KEYS[1])
leave(2, ARGV[1], ARGV[2])
for i = 5, 7 do redis.call('ZREM', KEYS[i], ARGV[1]) end
return 1
"""
)

# KEYS job, waiting, line, turns, index, expiry, leases, webhook, outbox. ARGV id, owner, now, tombstone_seconds.
# -> 1 expired now, 0 not due. A job that nobody ended ends here; its caller is told that it failed.
EXPIRE = (
    LINE
    + TELL
    + """
local due = redis.call('ZSCORE', KEYS[6], ARGV[1])
if not due or tonumber(due) > tonumber(ARGV[3]) then return 0 end
leave(2, ARGV[1], ARGV[2])
for i = 5, 7 do redis.call('ZREM', KEYS[i], ARGV[1]) end
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'queued' or status == 'running' then
  tell(KEYS[1], KEYS[8], KEYS[9], ARGV[1], 'job.failed', 'expired', ARGV[3], ARGV[3] + ARGV[4])
end
redis.call('HSET', KEYS[1], 'status', 'expired')
redis.call('HDEL', KEYS[1], 'attempt_id', 'progress', 'preview')
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""
)
