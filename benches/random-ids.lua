-- wrk: every request accepts an id chosen at random among IDS (default: a million). Among 2^52
-- there are no repeats to speak of, so that the different ids are as many as the accepted ones.
-- Each thread of wrk has its own generator, seeded differently, so that they do not walk in step.

local ids = tonumber(os.getenv("IDS") or "1000000")
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("seed", threads)
end

function init()
  math.randomseed(seed * 7919)
end

function request()
  return wrk.format("GET", ("/api/verve/accept?id=%.0f"):format(math.random(0, ids - 1)))
end
