"""What is asked of Redis in one round trip instead of several. Nothing is decided here that lifecycle decides.

Each may run twice: a connection that is lost after the script ran is opened again, and the script sent again.
"""

# A job and what goes with it, or nothing: {'seen', value} of an idempotency key that made a job which is still there;
# {'full', count} of an owner's unfinished jobs, where that reaches the quota; {'made'}.
# KEYS: the job's hash, its tasks, its events, the jobs, the active ones, the idempotency key, the owner's jobs,
#       the project's jobs
# ARGV: id, event, idempotency value ('': none), its seconds, quota ('': none), number of fields,
#       fields and values of the hash, names and values of the tasks
CREATE_JOB = """
if redis.call('EXISTS', KEYS[1]) == 1 then return {'made'} end
if ARGV[3] ~= '' then
    local before = redis.call('GET', KEYS[6])
    if before and redis.call('EXISTS', 'dbserve:job:' .. cjson.decode(before).job_id) == 1 then
        return {'seen', before}
    end
end
if ARGV[5] ~= '' then
    local unfinished = 0
    for _, id in ipairs(redis.call('SMEMBERS', KEYS[7])) do
        if redis.call('SISMEMBER', KEYS[5], id) == 1 then
            unfinished = unfinished + 1
        else
            redis.call('SREM', KEYS[7], id)
        end
    end
    if unfinished >= tonumber(ARGV[5]) then return {'full', unfinished} end
    redis.call('SADD', KEYS[7], ARGV[1])
end
local fields = tonumber(ARGV[6])
redis.call('HSET', KEYS[1], unpack(ARGV, 7, 6 + 2 * fields))
redis.call('HSET', KEYS[2], unpack(ARGV, 7 + 2 * fields))
redis.call('XADD', KEYS[3], '*', 'event', ARGV[2])
redis.call('ZADD', KEYS[4], 0, ARGV[1])
redis.call('ZADD', KEYS[8], 0, ARGV[1])
redis.call('SADD', KEYS[5], ARGV[1])
if ARGV[3] ~= '' then redis.call('SET', KEYS[6], ARGV[3], 'EX', ARGV[4]) end
return {'made'}
"""

# How many of an owner's jobs have not ended. KEYS: the owner's jobs, the active ones
UNFINISHED = """
local unfinished = 0
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    unfinished = unfinished + redis.call('SISMEMBER', KEYS[2], id)
end
return unfinished
"""

# Fenced: an attempt that is not current, or whose task has ended, writes nothing. What is written is dated by the
# store's clock. Answers with the task as it stands.
# KEYS: tasks, progress; ARGV: task, attempt, field, progress
RECORD_PROGRESS = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw then return false end
local task = cjson.decode(raw)
local state = task.state
if task.run.attempt == tonumber(ARGV[2]) and (state == 'running' or state == 'pausing' or state == 'cancelling') then
    local at = redis.call('TIME')
    redis.call('HSET', KEYS[2], ARGV[3], string.format('%d.%06d %s', at[1], at[2], ARGV[4]))
end
return raw
"""

# Looks at jobs: of each {record, intent, finished_at, revision}, its tasks as one JSON array, its progress.
# KEYS: of each job its hash, its tasks, its progress
LOOK = """
local found = {}
for place = 1, #KEYS, 3 do
    found[#found + 1] = {
        redis.call('HMGET', KEYS[place], 'record', 'intent', 'finished_at', 'revision'),
        '[' .. table.concat(redis.call('HVALS', KEYS[place + 1]), ',') .. ']',
        redis.call('HGETALL', KEYS[place + 2])
    }
end
return found
"""

# A job inside a transaction, the store's time, whether there are webhooks. KEYS: its tasks, its hash, webhooks' ids
READ_JOB = """
return {
    redis.call('HVALS', KEYS[1]), redis.call('HMGET', KEYS[2], 'record', 'intent'), redis.call('TIME'),
    redis.call('EXISTS', KEYS[3])
}
"""

# Messages whose next attempt is due; each is put off by a while, after which it is due again unless it was settled.
# KEYS: of each webhook its due set and its pending messages; ARGV: seconds of that while, of each how many at most
CLAIM_DELIVERIES = """
local at = redis.call('TIME')
local now = at[1] + at[2] / 1e6
local found = {}
for place = 1, #KEYS, 2 do
    local due = redis.call('ZRANGEBYSCORE', KEYS[place], '-inf', now, 'LIMIT', 0, ARGV[(place + 3) / 2])
    for _, id in ipairs(due) do
        local raw = redis.call('HGET', KEYS[place + 1], id)
        if raw then
            redis.call('ZADD', KEYS[place], now + ARGV[1], id)
            found[#found + 1] = raw
        else
            redis.call('ZREM', KEYS[place], id)
        end
    end
end
return found
"""

# What an attempt that ends has told is kept apart, whatever it told last; what stood there goes.
# KEYS: progress; ARGV: its field, the field of what was told last
SET_ASIDE = """
local told = redis.call('HGET', KEYS[1], ARGV[1])
if told then
    redis.call('HSET', KEYS[1], ARGV[2], told)
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HDEL', KEYS[1], ARGV[2])
end
"""

# A request of the last 60 s, counted by the minute: {whether it was counted, this minute's count, the last one's}.
# KEYS: this minute's count, the last one's; ARGV: how many may be, the share of the last minute that still counts,
#       seconds that a count is kept
COUNT_REQUEST = """
local current = tonumber(redis.call('GET', KEYS[1]) or 0)
local previous = tonumber(redis.call('GET', KEYS[2]) or 0)
if current + math.floor(previous * tonumber(ARGV[2])) >= tonumber(ARGV[1]) then return {0, current, previous} end
current = redis.call('INCR', KEYS[1])
if current == 1 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return {1, current, previous}
"""
