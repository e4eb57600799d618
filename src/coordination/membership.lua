-- Reads the config and all heartbeats, at one moment.
--
-- A script, though it only reads, so that shared.lua alone decides what is a valid heartbeat. If this reader and the
-- script that closes windows disagreed about one, a window could wait for ever.
--
-- KEYS: config, instances.
-- Returns `Members` of membership.rs as JSON.
local CONFIG, INSTANCES = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local settings, fields = {}, redis.call('HGETALL', CONFIG)
for i = 1, #fields, 2 do
  if not string.find(fields[i] .. fields[i + 1], '[^ -~]') then
    settings[fields[i]] = fields[i + 1]
  end
end
return json({now = time[1] * 1000000 + time[2], since = number(settings.since), joined = number(settings.joined),
  settings = settings, heartbeats = heartbeats(INSTANCES)})
