-- Merges a closed window of a counter into an hour or a day of it, and notes how many ids the hour or day has then.
--
-- A script, because a leader may die at any moment. A merge without its note would hide that ids are lost later.
--
-- KEYS: the sketch of the window, that of the hour or day, one to merge with for a moment, and the records of the bucket.
-- ARGV: the start of the window; the counter; how many ids the window was counted with; 1 if these are all its ids; when the hour or day expires, in
-- seconds since 1970.
local WINDOW, PERIOD, MERGE, RECORDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local window, counter, counted, is_whole, expires = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5]
-- A sketch that takes all its bytes.
local DENSE = 12304
-- To merge into a short string takes Redis up to 10 us for each id. To merge into a dense one takes it less than 150 us.
local FEW = 100

-- The first window. No counter has an empty name. Records that were lost, and are made anew, have a later one.
redis.call('HSETNX', RECORDS, '', window)
local record = redis.call('HGET', RECORDS, counter)
local noted, mark = string.match(record or '0', '^(%d+)(%??)$')
local before = redis.call('PFCOUNT', PERIOD)
-- A sketch only grows. One with fewer ids than were noted has lost some.
is_whole = is_whole and noted and mark == '' and before >= tonumber(noted) and redis.call('PFCOUNT', WINDOW) >= counted

if before + counted > FEW and redis.call('STRLEN', PERIOD) < DENSE then
  -- The union with a dense sketch is dense. This one is empty.
  redis.call('SET', MERGE, 'HYLL' .. string.rep('\0', DENSE - 4), 'PX', 60000)
  redis.call('PFMERGE', PERIOD, WINDOW, MERGE)
  redis.call('DEL', MERGE)
else
  redis.call('PFMERGE', PERIOD, WINDOW)
end
redis.call('EXPIREAT', PERIOD, expires)
redis.call('HSET', RECORDS, counter, redis.call('PFCOUNT', PERIOD) .. (is_whole and '' or '?'))
redis.call('EXPIREAT', RECORDS, expires)
