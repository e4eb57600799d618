-- wrk's script for benches/peers: each request is a GET with the next pair of a counter and an id.
-- Arguments: FILE FORM. FILE has a row for each pair, as data.py writes it: the number of the counter in 32 bits, and the id
-- in 64. FORM is the path, with COUNTER and ID in it.
-- The threads take turns at the pairs: of two threads number n sends the pairs n, n + 2, n + 4 and so on, and begins again
-- after the last one. So what was sent is known. The last line of the output is the result, in JSON.

local ffi = require("ffi")
ffi.cdef("typedef struct __attribute__((packed)) { uint32_t counter; uint64_t id; } pair;")

local THREADS, COUNTERS = 2, 1000
local all = {}

function setup(thread)
  thread:set("number", #all)
  table.insert(all, thread)
end

-- It must be quick: wrk starts the first thread before it prepares the second one, and its clock afterwards. Lines of text
-- took so long that the figure was far too high.
function init(args)
  local file = assert(io.open(args[1], "rb"))
  -- Global, so that the text lives as long as the pointer into it.
  text = file:read("*a")
  file:close()
  local rows, number_of_rows = ffi.cast("const pair *", text), #text / ffi.sizeof("pair")
  local names = {}
  for k = 1, COUNTERS do
    names[k] = "campaign-" .. k
  end
  local before, first, between, _, after = args[2]:match("^(.-)(COUNTER)(.-)(ID)(.*)$")
  if not before then
    before, first, between, _, after = args[2]:match("^(.-)(ID)(.-)(COUNTER)(.*)$")
  end
  -- Not with wrk.format: it takes longer than the server.
  before, after = "GET " .. before, after .. " HTTP/1.1\r\nhost: localhost\r\n\r\n"
  local is_counter_first, next_row = first == "COUNTER", number
  sent = 0
  request = function()
    local counter, id = names[rows[next_row].counter], tonumber(rows[next_row].id)
    next_row = next_row + THREADS
    if next_row >= number_of_rows then
      next_row = number
    end
    sent = sent + 1
    if is_counter_first then
      return before .. counter .. between .. id .. after
    end
    return before .. id .. between .. counter .. after
  end
end

function done(summary, _, _)
  local errors = summary.errors
  io.write(("\n{\"requests\":%d,\"bytes\":%d,\"micros\":%d,\"refused\":%d,\"broken\":%d,\"sent\":[%d,%d]}\n"):format(
    summary.requests, summary.bytes, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, all[1]:get("sent"), all[2]:get("sent")))
end
