"""Who runs next, as Lua: turns between owners, and each owner's own line by priority and then by acceptance.

A waiting job is in three places at once, and every script that moves it moves it in all of them: the waiting set of its
profile (all jobs by sequence), the line of its owner (their jobs by class and sequence), and its owner has a turn while
that line is not empty. The owner with the lowest turn is next, with the first of the line, and goes to the end of the
turns: so one owner's thousand jobs hold up another owner's single job by one job, and a priority moves a job past the
jobs of its own owner only.
"""

from jobs.options import Priority

# Score of a job in its owner's line: its class, then its sequence. Exact in a double up to 2^53.
CLASSES: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
CLASS_STRIDE = 10**13

# Functions for the scripts of jobs.scripts. at: the first of the three keys waiting, line, turns in KEYS.
# A job that comes back from a run that did not end had its turn: it is before all others of its owner, whatever their
# priority, and the owner gets the turn back.
LINE = f"""
local function join(at, id, owner, class, sequence, is_back)
  redis.call('ZADD', KEYS[at], sequence, id)
  if is_back then class = -1 end
  redis.call('ZADD', KEYS[at + 1], tonumber(class) * {CLASS_STRIDE} + tonumber(sequence), id)
  local has_turn = redis.call('ZSCORE', KEYS[at + 2], owner)
  if is_back then
    local first = redis.call('ZRANGE', KEYS[at + 2], 0, 0, 'WITHSCORES')
    redis.call('ZADD', KEYS[at + 2], tonumber(first[2] or 0) - 1, owner)
  elseif not has_turn then
    local last = redis.call('ZRANGE', KEYS[at + 2], -1, -1, 'WITHSCORES')
    redis.call('ZADD', KEYS[at + 2], tonumber(last[2] or 0) + 1, owner)
  end
end

local function leave(at, id, owner)
  redis.call('ZREM', KEYS[at], id)
  redis.call('ZREM', KEYS[at + 1], id)
  if redis.call('EXISTS', KEYS[at + 1]) == 0 then redis.call('ZREM', KEYS[at + 2], owner) end
end

local function spend_turn(at, owner)
  if not redis.call('ZSCORE', KEYS[at + 2], owner) then return end
  local last = redis.call('ZRANGE', KEYS[at + 2], -1, -1, 'WITHSCORES')
  redis.call('ZADD', KEYS[at + 2], tonumber(last[2]) + 1, owner)
end

-- The line is full, but not for one job of somebody who has none in it.
local function has_room(at, num_jobs, max_waiting)
  if redis.call('ZCARD', KEYS[at]) + num_jobs <= tonumber(max_waiting) then return true end
  return num_jobs == 1 and redis.call('EXISTS', KEYS[at + 1]) == 0
end
"""

# A function for scripts that tell a place in line: how many jobs run before this one if nobody comes or goes; nil when
# it does not wait. lines: prefix of the lines of its profile. O(log n), and one look at each owner who waits.
PLACE = """
local function place(lines, turns, owner, id)
  local rank = redis.call('ZRANK', lines .. owner, id)
  if not rank then return nil end
  local before, num_turns = rank, rank + 1  -- of those whose turn comes before this owner's
  for _, other in ipairs(redis.call('ZRANGE', turns, 0, -1)) do
    if other == owner then num_turns = rank
    else before = before + math.min(redis.call('ZCARD', lines .. other), num_turns) end
  end
  return before
end
"""

# KEYS line, turns. ARGV lines, owner, id. -> its place, or nil
POSITION = PLACE + "return place(ARGV[1], KEYS[2], ARGV[2], ARGV[3])"
