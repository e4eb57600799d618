-- Takes an instance's heartbeat, if its settings equal those of the other instances.
--
-- A script, because two instances that disagree must not both find the namespace empty. And the answer has to name the
-- last closed window at the moment from which the heartbeat counts. Windows that a leader closes later wait for this
-- instance; windows that were closed earlier are in the answer.
--
-- KEYS: config, instances, counts, published.
-- ARGV: a JSON object. Windows are the seconds of their starts, times are in microseconds, what is not known is null:
--   instance_id
--   settings: pairs of a name and a value
--   heartbeat: watermark, newest, since, pending
--   acknowledged: when Redis took its last heartbeat; null for a first one, and after a loss
--   heard_at: when Redis took its last heartbeat before an interruption; null if there was none
--   others: the others' heartbeats as it knows them, if Redis may have lost them
--   first, published: the first window of the stream, and the last published one
--   knows: the last closed window whose count it knows
--   remembered, window_seconds: how many closed windows instances remember, and their length
--   keep_for: milliseconds to keep config and heartbeats
-- Returns `Answer` of heartbeat.rs as JSON.
local CONFIG, INSTANCES, COUNTS, PUBLISHED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ask = cjson.decode(ARGV[1])
for name, value in pairs(ask) do
  if value == cjson.null then
    ask[name] = nil
  end
end
local id, mine = ask.instance_id, ask.heartbeat

for _, setting in ipairs(ask.settings) do
  local name, ours = setting[1], setting[2]
  local theirs = redis.call('HGET', CONFIG, name)
  if theirs and theirs ~= ours then
    return json({differs = {setting = name, theirs = theirs}})
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local before = heartbeat_of(redis.call('HGET', INSTANCES, id))
if ask.acknowledged and (not before or before.at < ask.acknowledged) then
  return json({lost = {}})
end

-- A heartbeat that others restore is stored under '?' and the id. Under its own id, the instance would not notice that
-- Redis has lost something. This instance is back, so its restored heartbeat goes.
redis.call('HDEL', INSTANCES, '?' .. id)
for name, known in pairs(ask.others or {}) do
  name = string.gsub(name, '^[?~]', '')
  local there = -1
  for _, mark in ipairs({'', '~', '?'}) do
    local stored = heartbeat_of(redis.call('HGET', INSTANCES, mark .. name))
    there = math.max(there, stored and stored.at or -1)
  end
  -- A stored heartbeat that is older than the known one comes from a snapshot. What Redis took after it is lost too.
  if name ~= id and there < known.at then
    -- The ids of its sealed windows are lost too. If it lives, it restores them before its own heartbeat says so.
    known.watermark = 0
    redis.call('HSET', INSTANCES, '?' .. name, json(known))
  end
end

local is_known = redis.call('EXISTS', CONFIG) == 1
local others, others_live, any_fresh, any_stale = {}, false, false, false
for name, other in pairs(heartbeats(INSTANCES)) do
  if has_left(name) then
    others[name] = other
  elseif name ~= id then
    local silent_for = now - other.at
    others_live = others_live or silent_for < LIVES
    any_fresh = any_fresh or silent_for < FRESH
    any_stale = any_stale or silent_for >= FRESH
    -- An instance that lived at this one's last heartbeat may have been cut off too, and may have accepted ids for newer
    -- windows. If it lives, its next heartbeat corrects this.
    if ask.heard_at and ask.heard_at - other.at < LIVES and other.newest < mine.newest then
      other.newest = mine.newest
      redis.call('HSET', INSTANCES, name, json(other))
    end
    others[name] = other
  end
end

for _, setting in ipairs(ask.settings) do
  local name, ours = setting[1], setting[2]
  -- Counts and positions of windows of another length mean nothing any more.
  if name == 'window' and redis.call('HGET', PUBLISHED, 'window') ~= ours then
    redis.call('DEL', COUNTS, PUBLISHED)
    redis.call('HSET', PUBLISHED, 'window', ours)
  end
  redis.call('HSET', CONFIG, name, ours)
end
-- An instance that was new, or taken for dead, may be adding to any window.
if not before or now - before.at >= LIVES then
  redis.call('HSET', CONFIG, 'joined', json((number(redis.call('HGET', CONFIG, 'joined')) or 0) + 1))
end
-- `since`: from then on some instance was always there. An instance that comes while no other lives starts it anew. An
-- instance that was there for longer moves it back.
local since = number(redis.call('HGET', CONFIG, 'since'))
local returns = before and before.since == mine.since
if not since or (others_live and mine.since < since) or not (others_live or returns) then
  redis.call('HSET', CONFIG, 'since', json(mine.since))
end
local interrupted = number(redis.call('HGET', CONFIG, 'interrupted')) or 0
if ask.heard_at then
  redis.call('HSET', CONFIG, 'interrupted', json(now))
end
mine.at = now
redis.call('HSET', INSTANCES, id, json(mine))
redis.call('PEXPIRE', CONFIG, json(ask.keep_for))
redis.call('PEXPIRE', INSTANCES, json(ask.keep_for))

-- A window that is a year ahead is not headcount's.
local function window_in(key, field)
  local start = number(redis.call('HGET', key, field))
  return start and start * 1000000 < now + A_YEAR and start or nil
end

-- A server that lost the first or the published window, or a replica that never got it, learns it here.
local first = window_in(PUBLISHED, 'first')
-- Instances that left raise no doubt. An instance whose heartbeats go on knows by itself whether it was cut off.
local unsure = not is_known or not first or now - interrupted < GRACE or any_stale and not any_fresh
if not first or ask.first and ask.first < first then
  first = ask.first or mine.watermark
  redis.call('HSET', PUBLISHED, 'first', json(first))
end
local published = window_in(PUBLISHED, 'last')
if ask.published and (published or -1) < ask.published then
  published = ask.published
  redis.call('HSET', PUBLISHED, 'last', json(published))
end

local closed = window_in(COUNTS, 'last')
-- Counts are read one by one: the hash holds many more while sinks are away.
local news = {}
if closed then
  local oldest = math.max((ask.knows or -1) + 1, closed - (ask.remembered - 1) * ask.window_seconds)
  for start = closed, oldest, -ask.window_seconds do
    local count = redis.call('HGET', COUNTS, json(start))
    news[json(start)] = count and not string.find(count, '[^ -~]') and count or nil
  end
end
return json({taken = {now = now, first = first, closed = closed, published = published, unsure = unsure,
  others = others, news = news}})
