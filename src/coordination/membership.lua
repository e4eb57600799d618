-- Reads what instances have agreed on and all their heartbeats, at one moment.
--
-- A script, though it only reads: what counts as a heartbeat is decided in one place, above. If the reader here took
-- something for a heartbeat and the script that closes windows did not, or the reverse, a window could wait for ever.
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
