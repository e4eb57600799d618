-- Takes an instance's goodbye: all that it accepted is sealed, and nobody waits for it any more.
--
-- Its report stays under another name, until the windows that it had a part in are closed. Should the server lose what
-- it holds before that, the others know by it that something is missing which nobody can add again.
--
-- A script, because a report must never be under both names or under none.
--
-- KEYS: instances. ARGV: process.
local report = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1], '?' .. ARGV[1])
if report then
  redis.call('HSET', KEYS[1], '~' .. ARGV[1], report)
end
return 1
