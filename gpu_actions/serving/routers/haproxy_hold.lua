-- Hold new requests for a while: until the hold ends, is given back, or a request has waited long enough.
-- The map hold.map has `until_ms` (Unix time; 0: no hold), `limit` (requests that may wait) and `wait_ms` (for one of them).
-- The transaction variable `hold` is `full` or `timeout` for a request that must be refused, and stays `waiting` for one whose client left:
-- HAProxy then ends this action and goes on with the rules.

local POLL_MS = 40
-- A request that has not asked for this long has gone: its client left.
local FORGET_MS = 1000

local settings = Map.new("hold.map", Map._str)
local asked_ms = {}
local numbers = 0

local function now_ms()
  local now = core.now()
  return now.sec * 1000 + math.floor(now.usec / 1000)
end

-- The time of day. HAProxy's own time, above, stands still while the process waits for a processor: on a busy machine it is late.
local function clock_ms(txn)
  return tonumber(txn.f:date(0, "ms"))
end

local function setting(name)
  return tonumber(settings:lookup(name)) or 0
end

local function waiting()
  local oldest, count = now_ms() - FORGET_MS, 0
  for number, at in pairs(asked_ms) do
    if at < oldest then asked_ms[number] = nil else count = count + 1 end
  end
  return count
end

core.register_action("hold", { "http-req" }, function(txn)
  local began = now_ms()
  if clock_ms(txn) >= setting("until_ms") then return end
  if waiting() >= setting("limit") then
    txn:set_var("txn.hold", "full")
    return
  end
  txn:set_var("txn.hold", "waiting")
  numbers = numbers + 1
  local number = numbers
  while true do
    local now = now_ms()
    if clock_ms(txn) >= setting("until_ms") then
      txn:set_var("txn.hold", "released")
      break
    end
    if now - began >= setting("wait_ms") then
      txn:set_var("txn.hold", "timeout")
      break
    end
    asked_ms[number] = now
    core.msleep(POLL_MS)
  end
  asked_ms[number] = nil
end, 0)

core.register_cli({ "show", "held" }, "show held: how many requests are held now", function(applet)
  applet:send(tostring(waiting()) .. "\n")
end)
