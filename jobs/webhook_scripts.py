"""The outbox of webhooks as Lua: the script that ends a job makes its entry, one deliverer at a time takes it.

A webhook's hash holds its claim: whoever took the entry last. A deliverer that lost its claim changes nothing.
"""

from jobs import keys

# A function for the scripts of jobs.scripts that end a job: those who wait for it are woken (`jobs.ends`; a user who
# may not publish ends jobs all the same), and its webhook is made. The job's own options say whether and of what to
# tell; a final job never ends again before it is replayed, which drops its entry: there is one for each job at most.
TELL = (
    f"local ended = '{keys.ENDED}'"
    + """
local function tell(job, webhook, outbox, id, event, status, now, kept_until)
  redis.pcall('PUBLISH', ended, id)
  local options = cjson.decode(redis.call('HGET', job, 'base')).options
  if not options or type(options.webhook_url) ~= 'string' then return end
  local is_asked = type(options.webhook_events) ~= 'table'
  if not is_asked then
    for _, asked in ipairs(options.webhook_events) do is_asked = is_asked or asked == event end
  end
  if not is_asked then return end
  redis.call('HSET', webhook, 'url', options.webhook_url, 'event', event, 'status', status, 'ended_at', now,
             'kept_until', kept_until, 'state', 'pending', 'attempts', 0, 'next_attempt_at', now,
             'replays', redis.call('HGET', job, 'replays') or 0)
  redis.call('ZADD', outbox, now, id)
end
"""
)

# KEYS webhook, outbox. ARGV id, now, claimed_until, claim. -> the fields of the hash; none when it is not due
# The time of an entry that is claimed is the end of its claim: a deliverer that died gives it back so.
CLAIM = """
local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not due or tonumber(due) > tonumber(ARGV[2]) then return {} end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('HSET', KEYS[1], 'claim', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
return redis.call('HGETALL', KEYS[1])
"""

# KEYS webhook, outbox, dead, deliveries.
# ARGV id, claim, state, outcome, http_status, is_disabled, next_attempt_at, now, dead_seconds, tombstone_seconds
# -> 1 noted, 0 the claim is lost
SETTLE = """
local held = redis.call('HMGET', KEYS[1], 'claim', 'kept_until')
if held[1] ~= ARGV[2] then return 0 end
redis.call('HINCRBY', KEYS[4], ARGV[4], 1)
redis.call('HDEL', KEYS[1], 'claim', 'next_attempt_at', 'last_status')
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'last_outcome', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'last_status', ARGV[5]) end
if ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'is_disabled', 1) end
if ARGV[3] == 'pending' then
  redis.call('HSET', KEYS[1], 'next_attempt_at', ARGV[7])
  redis.call('ZADD', KEYS[2], ARGV[7], ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[2], ARGV[1])
local kept_seconds = tonumber(held[2]) - tonumber(ARGV[8]) + tonumber(ARGV[10])  -- as long as its job is told of
if ARGV[3] == 'dead' then
  redis.call('ZADD', KEYS[3], ARGV[8], ARGV[1])
  kept_seconds = math.max(kept_seconds, tonumber(ARGV[9]))
end
redis.call('EXPIRE', KEYS[1], math.max(60, math.ceil(kept_seconds)))
return 1
"""

# KEYS webhook, outbox, dead. ARGV id, now. -> 'pending', 'disabled' by the receiver, or nil without a webhook
REPLAY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
if redis.call('HEXISTS', KEYS[1], 'is_disabled') == 1 then return 'disabled' end
local claimed_until = redis.call('HEXISTS', KEYS[1], 'claim') == 1 and redis.call('ZSCORE', KEYS[2], ARGV[1])
if claimed_until and tonumber(claimed_until) > tonumber(ARGV[2]) then return 'pending' end
redis.call('PERSIST', KEYS[1])
redis.call('HDEL', KEYS[1], 'claim')
redis.call('HSET', KEYS[1], 'state', 'pending', 'attempts', 0, 'next_attempt_at', ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 'pending'
"""

# KEYS webhook, outbox, dead. ARGV id. -> 1 forgotten, 0 it is to be sent again
FORGET = """
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
"""
