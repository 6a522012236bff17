-- One request of one process to the store of one registry. `store.rs` is its model, and has the comments.
--
-- KEYS[1]: the hash. ARGV: run and stamp (empty: of this server, and its time), channel, node, instance, number, epoch, clock, held, wished,
-- pool, hold, intent (renew, leave; or of an operator, with no more than the channel: init, pause, resume), order, report, gone; and the evidence: lowered,
-- good, signs, worked, span, floor, sign.
-- KEYS[2]: the last report of each process, with its time, for the eyes of operators. It may be missing.
-- The hash: run, epoch, clock, seen, born, longest, order, force, sign, calm; and for each "node/instance" thirteen numbers, packed, since reading
-- 500 texts takes most of the time: granted wished until number limit since pool window good signs worked span asks_at. Records of older scripts
-- have the first seven, or twelve.
local LOAN, SEEN, FORCE, CALM, NOTHING_SEEN, NEVER = '<ddddddd', '<ddddd', '<dddddd', '<ddddd', string.rep('\0', 40), string.rep('\0', 8)
-- Local names are found sooner, and this is said hundreds of times.
local min, max, floor, find, unpack_loan = math.min, math.max, math.floor, string.find, struct.unpack
local function number(at) return tonumber(ARGV[at]) end
local key, run, stamp, channel, node, intent = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[13]
local replicas, millis = 0, tonumber(stamp)
if run == '' then
    run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
    local time = redis.call('TIME')
    stamp = string.format('%d.%06d', time[1], time[2])
    millis = floor(stamp * 1000)
    replicas = tonumber(string.match(redis.call('INFO', 'replication'), 'connected_slaves:(%d+)') or 0)
end

-- The evidence of a record is read only where it is needed, which is seldom: packed, and as numbers.
local function seen_by(record)
    local value = record.value
    return value and #value >= 96 and string.sub(value, 57, 96) or NOTHING_SEEN
end
-- When the process was told to ask again, packed.
local function asked(value) return value and #value >= 104 and string.sub(value, 97, 104) or NEVER end
local function look(record)
    record.window, record.good, record.signs, record.worked, record.span = struct.unpack(SEEN, record.seen or seen_by(record))
end
-- What a process has seen, with the evidence of this request: in the window that began then, of the time since the last lowering. And whether it counts.
local function counted(seen, began, lowered)
    look(seen)
    -- Answers to requests of before the last lowering say nothing of the slots now.
    local good, signs, span = number(18), number(19), number(21)
    local counts = span > 0 and number(17) == lowered and (good + signs > 0 or seen.window == began)
    if counts then
        if seen.window ~= began then seen.window, seen.good, seen.signs, seen.worked, seen.span = began, 0, 0, 0, 0 end
        seen.good, seen.signs, seen.worked, seen.span = seen.good + good, seen.signs + signs, seen.worked + number(20), seen.span + span
    end
    return struct.pack(SEEN, seen.window, seen.good, seen.signs, seen.worked, seen.span), counts
end
-- The clock of an epoch, and the time of the server up to which it has been told of.
local function advanced(clock, seen)
    local passed = millis - seen
    local more = min(number(8) - clock, passed + floor(passed / 50))
    if more <= 0 then return clock, seen end
    return clock + more, min(max(seen + more, millis - 1000), millis)
end

local name, serial, hold = node .. '/' .. (ARGV[5] or ''), number(6), number(12)
-- The answer to a process that says nothing new, where the last look at all records says that nothing is to be done: they are not read.
local function quickly()
    if intent ~= 'renew' or ARGV[16] ~= '' or number(19) > 0 then return end
    -- A user of before may not call it.
    local found = redis.pcall('HMGET', key, name, 'calm', 'run', 'epoch', 'clock', 'seen', 'longest', 'order', 'force', 'sign')
    if found.err then return end
    local value, calm, of_run, epoch, clock, seen, longest, order, force, sign = unpack(found)
    if not value or #value < struct.size(LOAN) or not calm or #calm < struct.size(CALM) or of_run ~= run or epoch ~= ARGV[7] then return end
    local granted, wished, _, last, limit, since, pool = unpack_loan(LOAN, value)
    local ends, spare, _, _, unmet = struct.unpack(CALM, calm)
    clock, seen, order = tonumber(clock), min(tonumber(seen), millis), tonumber(order or 0)
    clock, seen = advanced(clock, seen)
    local wishes, asks_at = min(number(10), number(11)), struct.unpack('<d', asked(value))
    local is_same = granted == number(9) and granted == limit and pool == number(11)
        and (wishes == wished or unmet > 0 and wishes >= unmet and wished >= unmet)
    if clock >= ends or not is_same or spare > 0 and granted < wishes + spare or asks_at > 0 and asks_at <= clock then return end
    if asks_at == 0 and 0 < granted and granted < wishes and unmet ~= 1 then return end
    if serial <= last or hold > tonumber(longest) or number(14) > order then return end
    local slots, lowered, began = 0, 0, 0
    if force and #force >= struct.size(FORCE) then slots, _, lowered, _, began = struct.unpack(FORCE, force) end
    if slots > 0 then return end
    redis.call('HSET', key, 'clock', string.format('%d', clock), 'seen', string.format('%d', seen), name,
        struct.pack(LOAN, granted, wishes, clock + hold, serial, limit, since, pool) .. counted({value = value}, began, lowered) .. asked(value))
    if KEYS[2] then redis.call('HSET', KEYS[2], name, stamp .. ' ' .. ARGV[15]) end
    return {1, serial, epoch, clock, granted, limit, max(asks_at - clock, 0), 0, replicas, order, 0, 0, lowered, sign or ''}
end
local answer = quickly()
if answer then return answer end

local meta, records, count = {}, {}, 0
-- Records that cannot be read: nobody knows what was lent by them.
local torn = {}
local flat = redis.call('HGETALL', key)
for at = 1, #flat, 2 do
    local name, value = flat[at], flat[at + 1]
    if not find(name, '/', 1, true) then
        meta[name] = value
    elseif #value < struct.size(LOAN) then
        torn[#torn + 1] = name
    else
        local granted, wished, till, last, limit, since, pool = unpack_loan(LOAN, value)
        records[name] = {
            name = name, granted = granted, wished = wished, till = till, number = last, limit = limit,
            since = since, pool = pool, had = granted, told = limit, began = since,
            value = value,
        }
        count = count + 1
    end
end

local clock, born, longest = tonumber(meta.clock or 0), tonumber(meta.born or 0), tonumber(meta.longest or 0)
local epoch, order, seen = meta.epoch, tonumber(meta.order or 0), min(tonumber(meta.seen or millis), millis)
-- The slots in force of all nodes together, in thousandths, 0 for all; and the moments of the last lowering, sign, window and look.
local slots, knee, lowered, signed, began, looked = 0, 0, 0, 0, 0, 0
if meta.force and #meta.force >= struct.size(FORCE) then slots, knee, lowered, signed, began, looked = struct.unpack(FORCE, meta.force) end
local sign = meta.sign or ''
-- Until when nothing is to be done; the slots that each process may have beyond its wish; the window in which a process told of signs last; until
-- when a node may have two processes; and from which wish on processes lack slots.
local calm, spare, marked, twins, unmet = 0, 0, 0, 0, 0
if meta.calm and #meta.calm >= 32 then calm, spare, marked, twins = struct.unpack('<dddd', meta.calm) end
local function save()
    redis.call('HSET', key, 'run', run, 'epoch', epoch, 'clock', string.format('%d', clock), 'seen', string.format('%d', seen), 'born', string.format('%d', born),
        'longest', string.format('%d', longest))
end
-- The highest order holds, and all nodes hear of it.
local function obey(other)
    if other <= order then return end
    order = other
    redis.call('HSET', key, 'order', string.format('%d', order))
    redis.call('PUBLISH', channel, string.format('%d', order))
end

if intent == 'pause' or intent == 'resume' then
    local odd = intent == 'pause' and 1 or 0
    local given = max(2 * millis + odd, order + 1)
    obey(given + (given + odd) % 2)
    return {1, order}
end

if intent == 'init' then
    if count + #torn > 0 then return {0} end
    epoch, born, seen = run .. ':' .. stamp, -1000000000, millis
    save()
    return {1}
end

if meta.run ~= run or #torn > 0 then
    epoch, born, seen = run .. ':' .. stamp, clock, millis
    for _, other in ipairs(torn) do redis.call('HDEL', key, other) end
end
longest = max(longest, hold)
obey(number(14))
local known = ARGV[7] == epoch
local own = records[name]
if own and serial <= own.number or known and not own then
    save()
    return {0}
end
if known then clock, seen = advanced(clock, seen) end

local gone = {}
local function forget(other)
    records[other] = nil
    count = count - 1
    gone[#gone + 1] = other
end
for other, record in pairs(records) do
    if record.till <= clock then forget(other) end
end
for instance in string.gmatch(ARGV[16] or '', '%S+') do
    if records[node .. '/' .. instance] then forget(node .. '/' .. instance) end
end
own = records[name]
local twin, of_node = 0, node .. '/'
for other, record in pairs(records) do
    if record.till > twin and other ~= name and find(other, of_node, 1, true) == 1 then twin = record.till end
end
local learning = max(born + longest - clock, 0)

if intent == 'leave' then
    if own then forget(name) end
else
    local had = number(9)
    if not (learning > 0 and not known) then had = min(own and own.granted or 0, had) end
    if own and known then had = max(had, min(own.limit, number(10))) end
    local since = clock
    if own and ((had > 0 and own.granted > 0) or (had == 0 and own.granted == 0 and own.wished > 0)) then since = own.since end
    if not own then count = count + 1 end
    records[name] = {
        name = name, granted = had, wished = min(number(10), number(11)), till = clock + hold, number = serial, limit = had, since = since,
        pool = number(11),
    }
    local loan, counts = records[name], false
    loan.seen, counts = counted(own or {}, began, lowered)
    if number(19) > 0 then
        marked = began
        if counts then sign = ARGV[23] end
    end
    own = loan
end
if twin > 0 and intent ~= 'leave' then twins = max(twins, twin, own.till) end

-- Parts: max-min fair, or one each for the first in turn.
local pool, sum, wishing, total, wishes = nil, 0, {}, 0, 0
for _, record in pairs(records) do
    if not pool or record.pool < pool then pool = record.pool end
    sum = sum + record.granted
    record.limit, record.target = record.granted, 0
    wishes = wishes + record.wished
    if record.wished > 0 then wishing[#wishing + 1] = record end
end
pool = pool or 0

-- The slots in force.
local least = max(number(22) or 0, 1)
local function whole() return max(floor((slots + 500) / 1000), least) end
local function raise(force, all, age)
    local step = floor(max(floor(all / 32), 1000) * min(age, 5000) / 1000)
    local quickly = force + min(step, max(floor(force / 6), 1000))
    local next = quickly
    if knee > 0 and quickly > knee then
        local stay = floor(10000 * min(force * 4, all) / all)
        local slowly = max(force + min(age, 1000), knee)
        next = clock - lowered < stay and max(force, knee) or slowly
        if slowly > floor(knee * 100 / 95) + 1000 then knee = 0 end
    end
    slots = next < all and next or 0
end
local function judge()
    local age, all = clock - began, pool * 1000
    if age < 500 or clock < looked + 100 then return end
    looked = clock
    local known, weights, good, signs, total, used, silent, voters = 0, 0, 0, 0, 0, 0, 0, {}
    for _, record in pairs(records) do
        look(record)
        record.uses = min(record.granted, record.wished)
        used = used + record.uses
        if record.good + record.signs > 0 and (record.window == began or record.window + 30000 >= clock) then
            record.weight = max(record.granted, 1)
            known, weights = known + 1, weights + record.weight
            if record.window == began then
                good, signs, total = good + record.good, signs + record.signs, total + record.weight
                record.spoiled = floor(record.signs * 1000000 / max(record.good + record.signs, record.granted))
                voters[#voters + 1] = record
            else
                silent = silent + record.uses
            end
        end
    end
    local is_quorum = known == 0 or #voters > 1 and total * 2 > weights or total * 4 > weights * 3
    local is_enough = signs == 0 or good + signs >= 50 or age >= 2000
    if not (is_quorum and is_enough) and age < 30000 then return end
    began = clock
    -- The worst are left out: a quarter of the use, one of them at least unless it has most of it.
    local spoiled, worked, theirs, bound, left_out = 0, 0, 0, floor(total / 4), 0
    -- Nothing is left out of nothing.
    if signs == 0 then voters = {} end
    signs = 0
    if #voters > 1 then
        table.sort(voters, function(a, b)
            if a.spoiled ~= b.spoiled then return a.spoiled > b.spoiled end
            return a.name < b.name
        end)
        if voters[1].weight * 2 <= weights then bound = max(bound, voters[1].weight) end
    end
    for _, record in ipairs(voters) do
        if left_out + record.weight <= bound then
            left_out = left_out + record.weight
        else
            bound = 0
            signs, spoiled = signs + record.signs, spoiled + record.weight * record.spoiled
            worked, theirs = worked + floor(record.worked * 1000 / record.span), theirs + record.uses
        end
    end
    local force = slots > 0 and min(slots, all) or all
    -- A node that sees signs says so at once: those that are silent saw none.
    spoiled = floor(spoiled / max(weights - left_out, 1))
    local is_calm = spoiled <= 10000
    if not is_calm then signed = clock end
    if spoiled > 20000 and signs > 1 then
        local served = floor((worked + silent * 1000) * used / max(theirs + silent, 1))
        served = max(floor(force * (1000000 - spoiled) / 1000000), floor(force * 3 / 4), served)
        knee = min(served, force)
        slots = min(max(floor(knee * 95 / 100), least * 1000), all)
        lowered = clock
    elseif slots > 0 and is_calm and (clock - signed >= 60000 or good > 0 and wishes >= whole()) then
        raise(force, all, age)
    end
end
if own and intent ~= 'leave' and pool > 0 then judge() end
local force = slots > 0 and min(whole(), pool) or 0
if force == pool then force = 0 end
if force > 0 then pool = force end

local turn
local function by_rank(a, b)
    if a.rank ~= b.rank then return a.rank < b.rank end
    return a.name < b.name
end
if #wishing > pool then
    turn, unmet = min(max(floor(20000 * pool / #wishing), 1000), 10000), 1
    -- First those in their turn, then those that wait, then those whose turn is over. Only the group that does not fit is sorted.
    local in_turn, waiting, over = {}, {}, {}
    for _, record in ipairs(wishing) do
        record.rank = record.since
        if record.granted == 0 then
            waiting[#waiting + 1] = record
        elseif clock - record.since >= turn then
            record.rank = -record.since
            over[#over + 1] = record
        else
            in_turn[#in_turn + 1] = record
        end
    end
    local left = pool
    for _, group in ipairs({in_turn, waiting, over}) do
        if left > 0 then
            if #group > left then table.sort(group, by_rank) end
            for at = 1, min(left, #group) do group[at].target = 1 end
            left = left - #group
        end
    end
else
    local levels, counts, left, others, level, rest = {}, {}, pool, #wishing, math.huge, 0
    for _, record in ipairs(wishing) do
        local wished = record.wished
        if not counts[wished] then levels[#levels + 1] = wished end
        counts[wished] = (counts[wished] or 0) + 1
    end
    table.sort(levels)
    for _, wished in ipairs(levels) do
        local fair = floor(left / others)
        if wished > fair then
            level, rest, unmet = fair, left - fair * others, fair + 1
            break
        end
        left, others = left - wished * counts[wished], others - counts[wished]
    end
    local above = {}
    for _, record in ipairs(wishing) do
        record.target = min(record.wished, level)
        if record.wished > level then above[#above + 1] = record end
    end
    if rest > 0 then
        table.sort(above, function(a, b)
            if a.granted ~= b.granted then return a.granted > b.granted end
            return a.name < b.name
        end)
        for at = 1, rest do above[at].target = above[at].target + 1 end
    end
end

local function by_need(a, b)
    if a.granted ~= b.granted then return a.granted < b.granted end
    if a.since ~= b.since then return a.since < b.since end
    return a.name < b.name
end
local function lacks(record) return record.granted < (turn and min(record.wished, 1) or record.wished) end

local again = 0
spare = 0
if learning == 0 and pool and count > 0 then
    local free, need = max(pool - sum, 0), max(sum - pool, 0)
    local lacking = {}
    for _, record in pairs(records) do
        if record.granted < record.target then lacking[#lacking + 1] = record end
        total = total + record.target
    end
    table.sort(lacking, by_need)
    for _, record in ipairs(lacking) do
        local more = min(free, record.target - record.granted)
        if more > 0 and record.granted == 0 then record.since = clock end
        record.granted = record.granted + more
        record.limit = record.granted
        free = free - more
        need = need + record.target - record.granted
    end
    if need > 0 then
        local idle = {}
        for _, record in pairs(records) do
            record.idle = record.granted - max(record.wished, record.target)
            if record.idle > 0 then idle[#idle + 1] = record end
        end
        table.sort(idle, function(a, b)
            if a.idle ~= b.idle then return a.idle > b.idle end
            return a.name < b.name
        end)
        for _, record in ipairs(idle) do
            local less = min(need, record.idle)
            record.limit = record.limit - less
            need = need - less
        end
        if need > 0 then
            for _, record in pairs(records) do record.limit = min(record.limit, record.target) end
        end
    elseif free > 0 and not turn then
        spare = floor((pool - min(total, pool)) / count)
        if own and intent ~= 'leave' then
            own.granted = own.granted + min(free, max(own.wished + spare - own.granted, 0))
            own.limit = own.granted
        end
    end
    if own and intent ~= 'leave' and lacks(own) then
        -- At the n-th end of a turn or of a lease, the one in the n-th place asks, of those that were heard of lately.
        local place, ends = 1, {}
        for _, record in pairs(records) do
            if record ~= own then
                if lacks(record) and 2 * (record.till - clock) > hold and by_need(record, own) then place = place + 1 end
                local turn_ends = turn and record.since + turn or 0
                if record.granted > 0 then ends[#ends + 1] = turn_ends > clock and min(turn_ends, record.till) or record.till end
            end
        end
        table.sort(ends)
        again = (ends[place] or clock) - clock
    end
end

-- A second at most, in which no lease and no turn ends; not while signs are judged.
calm = 0
if learning == 0 and slots == 0 and marked ~= began and clock >= twins then
    calm = clock + 1000
    for _, record in pairs(records) do
        calm = min(calm, record.till)
        if turn and record.granted > 0 and record.since + turn > clock then calm = min(calm, record.since + turn) end
    end
    calm = max(calm, clock + min(floor(count / 5), 1000))
end

if own and intent ~= 'leave' then own.asks_at = struct.pack('<d', again > 0 and clock + again or 0) end

-- Changes are written, and told to those that they concern.
save()
redis.call('HSET', key, 'force', struct.pack(FORCE, slots, knee, lowered, signed, began, looked), 'sign', sign, 'calm',
    struct.pack(CALM, calm, spare, marked, twins, unmet))
for _, other in ipairs(gone) do
    redis.call('HDEL', key, other)
    if KEYS[2] then redis.call('HDEL', KEYS[2], other) end
end
if KEYS[2] and intent ~= 'leave' then redis.call('HSET', KEYS[2], name, stamp .. ' ' .. ARGV[15]) end
for other, record in pairs(records) do
    local is_changed = record.granted ~= record.had or record.limit ~= record.told
    if is_changed or other == name or record.since ~= record.began then
        redis.call('HSET', key, other, struct.pack(LOAN, record.granted, record.wished, record.till, record.number, record.limit,
            record.since, record.pool) .. (record.seen or seen_by(record)) .. (record.asks_at or record.granted > record.had and NEVER or asked(record.value)))
    end
    if is_changed and other ~= name then
        redis.call('PUBLISH', channel .. ':' .. other,
            string.format('%s %d %d %d %d', epoch, record.number, record.granted, record.limit, lowered))
    end
end
if intent == 'leave' then own = {granted = 0, limit = 0} end
return {1, serial, epoch, clock, own.granted, own.limit, again, learning, replicas, order, twin, force, lowered, sign}
