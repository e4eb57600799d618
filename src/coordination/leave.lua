-- Lets an instance leave: all that it accepted is sealed, and nobody waits for it any more.
--
-- Its heartbeat stays under another name, until the windows that it had a part in are closed. Should the server lose what
-- it holds before that, the others know by it that something is missing which nobody can add again.
--
-- A script, because a heartbeat must never be under both names or under none.
--
-- KEYS: instances. ARGV: instance id.
local INSTANCES, id = KEYS[1], ARGV[1]
local heartbeat = redis.call('HGET', INSTANCES, id)
redis.call('HDEL', INSTANCES, id, '?' .. id)
if heartbeat then
  redis.call('HSET', INSTANCES, '~' .. id, heartbeat)
end
return 1
