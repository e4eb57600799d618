-- Takes an instance's report, if it is set up as the others are.
--
-- A script, because two instances that disagree must not both find the namespace empty, and because the
-- answer has to be the last closed window at the very moment from which the report counts: a window that is
-- closed later waits for this instance, one that was closed earlier is in the answer.
--
-- KEYS: config, instances, counts, published.
-- ARGV: process, when its last report was taken (µs; '' for a first one), watermark, newest window, since
--       (µs), ids that the process keeps for the store, the first and the last published window that it knows
--       of (or ''), when it was last heard of before an interruption (µs; '' if there was none), the others'
--       reports as it knows them, if they may be lost (JSON), the last closed window that it knows the count of
--       (or ''), how many closed windows are remembered, the length of a window (s), milliseconds for which a
--       report says that its instance lives, milliseconds after an interruption in which all have to report
--       again, milliseconds to keep config and instances without reports, then pairs of a setting and its value.
-- Returns {'ok', now (µs), first window of the namespace, last closed window or '', last published window or
--         '', 'unsure' if others may have been there and not reported yet or '', the others' reports (JSON),
--         counts that the process does not know (JSON)},
--         {'lost'} if this server does not have the process's last report, or
--         {'differs', setting, value} with the value of the others.
local CONFIG, INSTANCES, COUNTS, PUBLISHED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local process, acknowledged, watermark, newest, since = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local kept, first, last, heard, lost_reports = ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9]), cjson.decode(ARGV[10])
local knows, remembered, length = tonumber(ARGV[11]) or -1, tonumber(ARGV[12]), tonumber(ARGV[13])
local lives_for, grace, keep_for = ARGV[14] * 1000, ARGV[15] * 1000, ARGV[16]
local SETTINGS = 17
-- Reports come every second. Whose last one is older was perhaps cut off.
local FRESH_FOR = 2 * 1000000

for i = SETTINGS, #ARGV, 2 do
  local value = redis.call('HGET', CONFIG, ARGV[i])
  if value and value ~= ARGV[i + 1] then
    return {'differs', ARGV[i], value}
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local mine = redis.call('HGET', INSTANCES, process)
local reported = mine and tonumber(string.match(mine, '(%d+)$'))
if acknowledged ~= '' and (not reported or reported < tonumber(acknowledged)) then
  return {'lost'}
end
-- Under names that are nobody's: who finds a report of its own is not told that something is lost.
redis.call('HDEL', INSTANCES, '?' .. process)
for name, report in pairs(lost_reports) do
  name = string.gsub(name, '^%?', '')
  if name ~= process and redis.call('HEXISTS', INSTANCES, name) == 0 then
    redis.call('HSETNX', INSTANCES, '?' .. name, report)
  end
end
local is_known = redis.call('EXISTS', CONFIG) == 1
local others, others_live, any_fresh, any_stale = {}, false, false, false
local reports = redis.call('HGETALL', INSTANCES)
for i = 1, #reports, 2 do
  local name, report = reports[i], reports[i + 1]
  local oldest, latest, from, keeps, at = string.match(report, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if name ~= process then
    others_live = others_live or now - at < lives_for
    any_fresh = any_fresh or now - at < FRESH_FOR
    any_stale = any_stale or now - at >= FRESH_FOR
    -- One that was there when this process was last heard of was perhaps cut off too, and took ids for later
    -- windows. If it is still there, its next report says what is true.
    if heard and heard - at < lives_for and tonumber(latest) < tonumber(newest) then
      report = table.concat({oldest, newest, from, keeps, at}, ' ')
      redis.call('HSET', INSTANCES, name, report)
    end
    others[name] = report
  end
end

for i = SETTINGS, #ARGV, 2 do
  -- What is left of windows of another length is nobody's.
  if ARGV[i] == 'window' and redis.call('HGET', PUBLISHED, 'window') ~= ARGV[i + 1] then
    redis.call('DEL', COUNTS, PUBLISHED)
    redis.call('HSET', PUBLISHED, 'window', ARGV[i + 1])
  end
  redis.call('HSET', CONFIG, ARGV[i], ARGV[i + 1])
end
-- Whoever was not counted among the living until now may be adding to any window.
if not reported or now - reported >= lives_for then
  redis.call('HSET', CONFIG, 'joined', (redis.call('HGET', CONFIG, 'joined') or 0) + 1)
end
-- Since when somebody has always been there: an instance that comes while nobody is begins anew, one that
-- was there longer than was known makes it earlier.
local known = redis.call('HGET', CONFIG, 'since')
local returns = mine and string.match(mine, '^%d+ %d+ (%d+)') == since
if not known or (others_live and tonumber(since) < tonumber(known)) or not (others_live or returns) then
  redis.call('HSET', CONFIG, 'since', since)
end
local interrupted = tonumber(redis.call('HGET', CONFIG, 'interrupted') or 0)
if heard then
  redis.call('HSET', CONFIG, 'interrupted', string.format('%.0f', now))
end
local report = {watermark, newest, since, kept, string.format('%.0f', now)}
redis.call('HSET', INSTANCES, process, table.concat(report, ' '))
redis.call('PEXPIRE', CONFIG, keep_for)
redis.call('PEXPIRE', INSTANCES, keep_for)

-- A server that has lost it, or a replica that never got it, is told.
local there = redis.call('HGET', PUBLISHED, 'first')
-- Those who said goodbye are not in the way, and those who report all the time know whether they were cut off.
local unsure = not is_known or not there or now - interrupted < grace or any_stale and not any_fresh
if not there or first ~= '' and tonumber(first) < tonumber(there) then
  if first == '' then
    first = watermark
  end
  redis.call('HSET', PUBLISHED, 'first', first)
  there = first
end
local published = redis.call('HGET', PUBLISHED, 'last')
if last ~= '' and tonumber(published or -1) < tonumber(last) then
  redis.call('HSET', PUBLISHED, 'last', last)
  published = last
end

local closed = redis.call('HGET', COUNTS, 'last')
-- One by one: there are many more while they cannot be published.
local news = {}
if closed then
  local oldest = math.max(knows + 1, tonumber(closed) - (remembered - 1) * length)
  for start = tonumber(closed), oldest, -length do
    local window = string.format('%.0f', start)
    news[window] = redis.call('HGET', COUNTS, window) or nil
  end
end
return {'ok', string.format('%.0f', now), there, closed or '', published or '', unsure and 'unsure' or '',
  cjson.encode(others), cjson.encode(news)}
