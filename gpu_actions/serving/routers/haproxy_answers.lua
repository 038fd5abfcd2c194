-- Tell how a completion that was answered with 200 ended for its client: HTTP does not say it, because an engine in trouble
-- sends an error event into a stream that has begun. The transaction variable `answer` becomes `ok`, `error` (an error event, or
-- an error instead of an answer), `aborted` (the engine says that it gave the answer up), `unended` (a stream without [DONE])
-- or `empty` (no text and no token). It stays unset for what is not a completion, is compressed, broke off, or was too much to look into.
-- Only the last bytes are kept between two chunks, and nothing is written down.

local TAIL_BYTES = 64
-- A chunk costs about 25 us, so this bounds the cost to a tenth of a core: beyond it new answers are not looked into.
local CHUNKS_PER_S = 4000
local TEXT = { "text", "content", "reasoning_content", "reasoning", "arguments" }

local second, chunks = 0, 0

local Answers = { id = "gpu-oncall answers", flags = filter.FLT_CFG_FL_HTX }
Answers.__index = Answers

function Answers:new()
  return setmetatable({ tail = "\n", fault = nil, spoke = false }, Answers)
end

function Answers:begin(txn, msg)
  if not msg.channel:is_resp() then
    self.asked = txn.sf:path():find("completions", -11, true) ~= nil
    return
  end
  if not self.asked or tonumber(msg:get_stline().code) ~= 200 then return end
  local headers = msg:get_headers()
  local function header(name) return headers[name] and headers[name][0] or "" end
  local kind = header("content-type")
  self.streamed = kind:find("text/event-stream", 1, true) ~= nil
  if not self.streamed and not kind:find("application/json", 1, true) then return end
  if header("content-encoding") ~= "" then return end
  local now = core.now().sec
  if now ~= second then second, chunks = now, 0 end
  if chunks > CHUNKS_PER_S then return end
  self.judged = true
  filter.register_data_filter(self, msg.channel)
end

-- Quotes and line ends inside a JSON string are escaped, so neither `"error":` nor a line `event: error` is generated text.
function Answers:read(seen)
  if not self.spoke then
    for _, key in ipairs(TEXT) do
      if seen:find('"' .. key .. '"%s*:%s*"[^"]') then self.spoke = true break end
    end
    if not self.spoke and seen:find('"completion_tokens"%s*:%s*[1-9]') then self.spoke = true end
  end
  if self.fault then return end
  -- Plain searches first: a pattern is tried at every byte, which costs ten times as much.
  if seen:find('"error"', 1, true) or seen:find('"abort"', 1, true) or seen:find("event: error", 1, true) then
    if seen:find('"error"%s*:%s*[{"]') or seen:find("\nevent: error", 1, true) then
      self.fault = "error"
    elseif seen:find('"finish_reason"%s*:%s*"abort"') or seen:find('"finish_reason"%s*:%s*"error"') then
      self.fault = "aborted"
    end
  end
end

function Answers:take(msg)
  local body = msg:body()
  if not body or body == "" then return end
  chunks = chunks + 1
  local seen = self.tail .. body
  self:read(seen)
  self.tail = seen:sub(-TAIL_BYTES)
end

function Answers:finish(txn)
  if not self.judged then return end
  if not self.fault and self.streamed and not self.tail:find("[DONE]", 1, true) then self.fault = "unended" end
  if not self.fault and not self.spoke then self.fault = "empty" end
  txn:set_var("txn.answer", self.fault or "ok")
end

-- Whatever goes wrong in here must not touch the answer.
function Answers:http_headers(txn, msg)
  pcall(self.begin, self, txn, msg)
end

function Answers:http_payload(txn, msg)
  if self.judged then pcall(self.take, self, msg) end
end

function Answers:http_end(txn, msg)
  if msg.channel:is_resp() then pcall(self.finish, self, txn) end
end

core.register_filter("answers", Answers, function(instance)
  return instance
end)
