-- wrk's script for benches/load. It sends GETs of PREFIX<id>, or POSTs of BULK ids, with random ids below a million.
-- Arguments: PREFIX BULK SEED. The last line of the output is the result, in JSON.

local IDS = 1000000
-- Bodies are made before the measurement: to make a body takes longer than to count its ids.
local BODIES = 256

local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function init(args)
  prefix = args[1]
  bulk = tonumber(args[2])
  -- Each thread has its own generator, so that threads do not send the same ids.
  math.randomseed(tonumber(args[3]) * 7919 + number)
  if bulk > 0 then
    bodies, turn = {}, 0
    for body = 1, BODIES do
      local ids = {}
      for place = 1, bulk do
        ids[place] = ("%d\n"):format(math.random(0, IDS - 1))
      end
      bodies[body] = wrk.format("POST", prefix, {["content-type"] = "text/plain"}, table.concat(ids))
    end
    request = function()
      turn = turn % BODIES + 1
      return bodies[turn]
    end
  else
    -- Not with wrk.format: it takes longer than the server.
    local head, tail = "GET " .. prefix, " HTTP/1.1\r\nhost: localhost\r\n\r\n"
    local random = math.random
    request = function()
      return head .. random(0, IDS - 1) .. tail
    end
  end
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(("\n{\"requests\":%d,\"bytes\":%d,\"micros\":%d,\"p50\":%d,\"p99\":%d,\"refused\":%d,\"broken\":%d}\n"):format(
    summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
