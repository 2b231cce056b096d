-- Load on one side: the steps of each request drawn from a list, closed loop or at a rate.
-- wrk ... -s load.lua URL -- STEPS,STEPS,... RATE SEED SECONDS ENOUGH
-- The run ends once SECONDS have passed and ENOUGH responses have come, or with wrk's own -d, whichever is first: a run
-- of fixed length sees nothing of a server whose batches take longer.
-- At a rate, arrivals are a Poisson process laid down in advance: a request that finds no idle connection leaves late,
-- and the longest lateness is reported, so that a stalled server cannot slow the schedule unnoticed.
-- The rate of images is the slope of their count over time: whole batches arrive in bursts, and a run that ends between
-- two would lose up to a batch of few. If all came in a short part of the run, it is their number by its duration.

local ffi = require("ffi")
ffi.cdef([[typedef struct { long s; long us; } peers_time; int gettimeofday(peers_time *now, void *zone);
   int getpid(void); int kill(int pid, int signal);]])
local SIGINT = 2 -- ends wrk as its duration does, with a summary
local now_t = ffi.new("peers_time")
local function clock()
   ffi.C.gettimeofday(now_t, nil)
   return tonumber(now_t.s) + tonumber(now_t.us) * 1e-6
end

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   steps = {}
   for number in string.gmatch(args[1], "%d+") do
      table.insert(steps, number)
   end
   rate, late = tonumber(args[2]), 0
   images, began, sum_t, sum_k, sum_tt, sum_kt = 0, clock(), 0, 0, 0, 0
   first, last = 0, 0
   math.randomseed(tonumber(args[3]))
   shortest, enough, responses = tonumber(args[4]), tonumber(args[5]), 0
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
   wrk.headers["Accept"] = "image/png"
   if rate > 0 then
      delay = function()
         local now = clock()
         due = (due or now) - math.log(1 - math.random()) / rate
         late = math.max(late, now - due)
         return math.max(0, due - now) * 1000
      end
   end
end

function request()
   local body = string.format('{"prompt": "a red apple", "seed": %d, "num_inference_steps": %s}',
      math.random(0, 2 ^ 31 - 1), steps[math.random(#steps)])
   return wrk.format(nil, nil, nil, body)
end

function response(status)
   responses = responses + 1
   if status == 200 then
      local t = clock() - began
      images = images + 1
      first, last = images == 1 and t or first, t
      sum_t, sum_k, sum_tt, sum_kt = sum_t + t, sum_k + images, sum_tt + t * t, sum_kt + images * t
   end
   if responses >= enough and clock() - began >= shortest and not ended then
      ended = true
      ffi.C.kill(ffi.C.getpid(), SIGINT)
   end
end

local function per_second(thread, seconds)
   local n, t = thread:get("images"), thread:get("sum_t")
   if thread:get("last") - thread:get("first") < seconds / 4 then
      return n / seconds
   end
   return (n * thread:get("sum_kt") - t * thread:get("sum_k")) / (n * thread:get("sum_tt") - t * t)
end

function done(summary, latency, requests)
   local late, per_s = 0, 0
   for _, thread in ipairs(threads) do
      late, per_s = math.max(late, thread:get("late")), per_s + per_second(thread, summary.duration / 1e6)
   end
   local errors = summary.errors
   io.write(string.format(
      '{"responses": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "late_ms": %.3f, ' ..
      '"per_s": %.4f, ' ..
      '"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
      latency.max / 1000, late * 1000, per_s, errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
