-- Releases the lease, if the caller has it.
--
-- A script, because between looking and deleting, the lease could run out and another instance could take it.
--
-- KEYS: lease. ARGV: instance id.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
