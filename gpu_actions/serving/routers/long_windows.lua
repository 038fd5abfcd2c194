-- Release long-context requests together at fixed intervals while their tier is under back-pressure.
-- Transaction variables set the window (ms) and how many requests may wait for one boundary.

local boundary_ms = 0
local waiting = 0

core.register_action("long_window", { "http-req" }, function(txn)
  local window_ms = tonumber(txn:get_var("txn.window_ms")) or 0
  if window_ms <= 0 then return end
  local now = core.now()
  local now_ms = now.sec * 1000 + math.floor(now.usec / 1000)
  local next_ms = now_ms - now_ms % window_ms + window_ms
  if next_ms ~= boundary_ms then
    boundary_ms = next_ms
    waiting = 0
  end
  local limit = tonumber(txn:get_var("txn.max_queue")) or 0
  if limit > 0 and waiting >= limit then
    txn:set_var("txn.window_full", 1)
    return
  end
  waiting = waiting + 1
  core.msleep(next_ms - now_ms)
end, 0)

-- 1 while a server finishes its sessions and takes no new ones, else 0. `srv_weight` does not show that.
core.register_fetches("draining", function(txn, backend, server)
  local answer = core.backends[backend].servers[server]:is_draining()
  return (answer == true or answer == 1) and 1 or 0
end)
