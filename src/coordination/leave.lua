-- Lets an instance leave: it has sealed all its windows, and no leader waits for it any more.
--
-- Its heartbeat stays under another name until the windows that it added to are closed. If the server loses its data
-- before that, the others see that ids are missing, and that no instance can restore them.
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
