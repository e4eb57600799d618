-- Bulk bodies of 65 536 bytes at most: 3 449 ids of 18 digits.
local ids = {}
for n = 1, 3449 do ids[n] = string.format("1%017d\n", n) end
wrk.method = "POST"
wrk.body = table.concat(ids)
wrk.headers["content-type"] = "text/plain"
