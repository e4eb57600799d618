-- wrk's script for benches/load and benches/load/demo. It sends GETs of PREFIX<id>, or POSTs of BULK ids, with random ids:
-- IDS different ones from FIRST on, a million by default.
-- Arguments: PREFIX BULK SEED [FIRST [COUNTERS [SKEW [IDS]]]]. The last line of the output is the result, in JSON.
--
-- With COUNTERS, a GET also names one of so many counters, campaign-1 and on, by Zipf's law: campaign-<k> has a share in
-- proportion to 1 / k^SKEW. SKEW is 1 by default.

-- Bodies are made before the measurement: to make a body takes longer than to count its ids.
-- So few, because the first thread sends while the second one still makes its bodies. benches/load/subject.rs knows the number.
local BODIES = 64

local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

-- Walker's alias method: a draw costs the same for any number of names. Each name gets a slot of the same width, of which
-- own[k] is its own. The rest of the slot belongs to alias[k], a more frequent name.
local function zipf(names, skew)
  local sum, own, alias, rare, frequent = 0, {}, {}, {}, {}
  for k = 1, names do
    sum = sum + k ^ -skew
  end
  for k = 1, names do
    own[k], alias[k] = k ^ -skew / sum * names, k
    table.insert(own[k] < 1 and rare or frequent, k)
  end
  while #rare > 0 and #frequent > 0 do
    local filled, giver = table.remove(rare), frequent[#frequent]
    alias[filled] = giver
    own[giver] = own[giver] - (1 - own[filled])
    if own[giver] < 1 then
      table.insert(rare, table.remove(frequent))
    end
  end
  return own, alias
end

-- The ends of requests, one for each counter, made before the measurement.
local function tails_of(names, tail)
  local tails = {}
  for k = 1, names do
    tails[k] = ("&counter=campaign-%d%s"):format(k, tail)
  end
  return tails
end

local function bodies_of(prefix, bulk, first, last)
  local bodies = {}
  for body = 1, BODIES do
    local ids = {}
    for place = 1, bulk do
      ids[place] = ("%d\n"):format(math.random(first, last))
    end
    bodies[body] = wrk.format("POST", prefix, {["content-type"] = "text/plain"}, table.concat(ids))
  end
  return bodies
end

function init(args)
  local prefix, bulk, first, counters = args[1], tonumber(args[2]), tonumber(args[4] or 0), tonumber(args[5] or 0)
  -- Each thread has its own generator, so that threads do not send the same ids.
  math.randomseed(tonumber(args[3]) * 7919 + number)
  -- Not with wrk.format: it takes longer than the server.
  local head, tail = "GET " .. prefix, " HTTP/1.1\r\nhost: localhost\r\n\r\n"
  local random, floor, last = math.random, math.floor, first + tonumber(args[7] or 1000000) - 1
  if bulk > 0 then
    local bodies, turn = bodies_of(prefix, bulk, first, last), 0
    request = function()
      turn = turn % BODIES + 1
      return bodies[turn]
    end
  elseif counters > 0 then
    local own, alias = zipf(counters, tonumber(args[6] or 1))
    local tails = tails_of(counters, tail)
    request = function()
      local place = random() * counters
      local slot = floor(place) + 1
      local counter = place - slot + 1 < own[slot] and slot or alias[slot]
      return head .. random(first, last) .. tails[counter]
    end
  else
    request = function()
      return head .. random(first, last) .. tail
    end
  end
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(("\n{\"requests\":%d,\"bytes\":%d,\"micros\":%d,\"p50\":%d,\"p99\":%d,\"refused\":%d,\"broken\":%d}\n"):format(
    summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
