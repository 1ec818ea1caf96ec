"""The store's Lua: each script touches one hash slot, and is all or nothing.

`fence` holds who may write, as "<epoch> <holder>". It changes when somebody else takes the lead, so a leader that was
deposed without knowing it is refused by its next batch, however long it slept.
"""

from __future__ import annotations

#: Takes the lead if nobody has it. A generation is made up with an empty store and never changes afterwards.
#: KEYS leader, epoch, fence, progress, generation   ARGV holder, ttl_ms, generation to make up
#: Returns fence and generation, or nothing.
ACQUIRE = """
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[5], ARGV[3], 'NX')
local fence = redis.call('INCR', KEYS[2]) .. ' ' .. ARGV[1]
redis.call('SET', KEYS[3], fence)
redis.call('SET', KEYS[4], 0)
return {fence, redis.call('GET', KEYS[5])}
"""

#: Keeps the lead. A key that ran out while Redis was away is set again if nobody has led since.
#: KEYS leader, fence   ARGV holder, ttl_ms, fence
#: Returns 1, or 0 for one who is deposed, or -1 for a store that knows nothing of a fence.
RENEW = """
local fence = redis.call('GET', KEYS[2])
if not fence then return -1 end
if fence ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

#: KEYS leader   ARGV holder
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

#: Writes a batch, once however often it is sent. Batches are numbered from 1 without gaps.
#: KEYS fence, progress, generation, then those that the batch names by number
#: ARGV fence, number, generation, the batch (see redis_batch.py)
#: Returns {'ok', last}, {'behind', last} if batches before this one are missing, {'deposed'} or {'lost'}.
APPEND = """
local fence = redis.call('GET', KEYS[1])
if redis.call('GET', KEYS[3]) ~= ARGV[3] then
  if fence and fence ~= ARGV[1] then return {'deposed'} end
  return {'lost'}
end
if fence ~= ARGV[1] then return {'deposed'} end
local last, number = tonumber(redis.call('GET', KEYS[2])), tonumber(ARGV[2])
if number <= last then return {'ok', last} end
if number > last + 1 then return {'behind', last} end

local MOST = 1000
local function each(command, key, items)
  for i = 1, #items, MOST do
    redis.call(command, key, unpack(items, i, math.min(i + MOST - 1, #items)))
  end
end

local batch = cmsgpack.unpack(ARGV[4])
for _, set in ipairs(batch[1]) do each('HSET', KEYS[set[1]], set[2]) end
for _, del in ipairs(batch[2]) do each('HDEL', KEYS[del[1]], del[2]) end
for _, set in ipairs(batch[3]) do
  for i = 1, #set[2], 2 do redis.call('HSETNX', KEYS[set[1]], set[2][i], set[2][i + 1]) end
end
for _, sums in ipairs(batch[4]) do
  local key, sum_of, keep_ms, fields, added = KEYS[sums[1]], sums[2], sums[3], sums[4], sums[5]
  for i = 1, #fields, MOST do
    local upto = math.min(i + MOST - 1, #fields)
    local held, both = redis.call('HMGET', key, unpack(fields, i, upto)), {}
    for j = i, upto do
      local add = added[j]
      if held[j - i + 1] then
        local old = cmsgpack.unpack(held[j - i + 1])
        for n = 1, #add do
          if n <= sum_of then add[n] = add[n] + old[n] else add[n] = math.max(add[n], old[n]) end
        end
      end
      both[#both + 1] = fields[j]
      both[#both + 1] = cmsgpack.pack(add)
    end
    redis.call('HSET', key, unpack(both))
  end
  if keep_ms > 0 then redis.call('PEXPIRE', key, keep_ms) end
end
for _, row in ipairs(batch[5]) do
  if row[2] > 0 then
    local now = redis.call('TIME')
    local oldest = string.format('%.0f', math.max(0, tonumber(now[1]) * 1000 - row[2]))
    redis.call('XADD', KEYS[row[1]], 'MINID', '~', oldest, '*', 'b', row[3])
  elseif redis.pcall('XADD', KEYS[row[1]], string.format('%.0f-*', row[4]), 'b', row[3]).err then
    -- The clock went back: later than the last one will do.
    redis.call('XADD', KEYS[row[1]], '*', 'b', row[3])
  end
end
for _, trim in ipairs(batch[6]) do redis.call('XTRIM', KEYS[trim[1]], 'MINID', trim[2]) end
redis.call('SET', KEYS[2], number)
return {'ok', number}
"""
