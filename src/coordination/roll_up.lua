-- Notes that a window was merged into its hour and its day, if the caller leads and the window was not noted before.
--
-- A script, because the note and the position have to move in one step: a window that is noted twice would make up for one that
-- is missing.
--
-- KEYS: token, rolled, and the records of the window's day.
-- ARGV: a JSON object. Windows are the seconds of their starts:
--   token, window
--   seconds: the length of the window
--   shards: how many sketches a window is split over
--   complete: all ids of the window are in the hour and the day
--   buckets: a list of the buckets of its counters, as texts
--   periods: a list of {field, before, after, has_all_counters}: how many ids the period had before and after the merge, and whether
--   it has all counters, as far as they are whole. No numbers if the window had no ids
--   keep_for: milliseconds
-- Returns 'noted' or 'fenced'.
local TOKEN, ROLLED, RECORDS = KEYS[1], KEYS[2], KEYS[3]
local ask = cjson.decode(ARGV[1])

if number(redis.call('GET', TOKEN)) ~= ask.token then
  return 'fenced'
end
-- The records have the position, too: another program may have deleted one of both keys.
for _, key in ipairs({ROLLED, RECORDS}) do
  local rolled = number(redis.call('HGET', key, 'window')) or -1
  -- A position that is a year ahead is not headcount's: it is overwritten.
  if ask.window <= rolled and rolled <= ask.window + A_YEAR / 1000000 then
    return 'noted'
  end
end

-- What is stored of a period; a record that another program wrote counts as none.
local function record_of(field)
  local is_json, record = pcall(cjson.decode, redis.call('HGET', RECORDS, field) or '')
  local is_record = is_json and type(record) == 'table' and type(record.seconds) == 'number'
    and type(record.unique_request_count) == 'number' and type(record.complete) == 'boolean'
    and type(record.has_all_counters) == 'boolean' and type(record.buckets) == 'table'
  if not is_record then
    return {seconds = 0, unique_request_count = 0, complete = true, has_all_counters = true, buckets = {}}
  end
  -- The sketches of other shards have other keys.
  if record.shards ~= ask.shards then
    return {seconds = 0, unique_request_count = 0, complete = false, has_all_counters = false, buckets = {}}
  end
  return record
end

for _, period in ipairs(ask.periods) do
  local record = record_of(period.field)
  -- A sketch only grows. One that had fewer ids than were noted had lost some.
  local is_whole = not period.before or period.before >= record.unique_request_count
  for _, bucket in ipairs(ask.buckets) do
    record.buckets[bucket] = record.buckets[bucket] or ask.window
  end
  redis.call('HSET', RECORDS, period.field, json({
    seconds = record.seconds + ask.seconds,
    shards = ask.shards,
    unique_request_count = period.after or record.unique_request_count,
    complete = record.complete and ask.complete and is_whole,
    has_all_counters = record.has_all_counters and period.has_all_counters,
    buckets = record.buckets,
  }))
end
for _, key in ipairs({ROLLED, RECORDS}) do
  redis.call('HSET', key, 'window', json(ask.window), 'shards', json(ask.shards))
  redis.call('PEXPIRE', key, json(ask.keep_for))
end
return 'noted'
