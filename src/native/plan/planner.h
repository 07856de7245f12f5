// Plans a MoE layer's step over an accelerator and the CPU for the default policies (two_lane, ridge, fading, under guards): what
// src/dali/runtime decides with them in Python, number for number, in one call.
#pragma once

#include <functional>

#include "plan/fading.h"
#include "plan/guards.h"
#include "plan/lanes.h"
#include "plan/residency.h"
#include "plan/step_plan.h"

namespace dali {

// The ids predicted of a later layer, and the seconds it took to predict them; none: `count` is 0.
struct Prediction {
    int layer;
    const int64_t* ids;
    int64_t count;
    double seconds;
};

// Active experts by where a step found them, and what became of those fetched ahead, as src/dali/telemetry.py has it.
struct StepCounts {
    int cpu, resident, prefetched, fetched, late, wasted;
    int swaps, copied_swaps;  // of the swaps
    int ahead;                // copies queued for a later layer
};

// Whether an expert of a layer is in RAM.
using InRam = std::function<bool(int layer, int expert)>;

class Planner {
  public:
    // `residents`: each layer's (expert, slot), landed; `predicts`: whether predictions may come. `totals` [layers, experts]: tokens that
    // each expert got in all steps, to be added to; null: nobody counts. `call`: seconds of a call of the CPU's experts beside what they
    // take, of the costs' handover.
    Planner(const std::vector<std::vector<std::pair<int, int>>>& residents, int experts, int slots, ExpertCosts costs, double call,
            bool predicts, int64_t* totals)
        : costs_(std::move(costs)), given_(costs_), call_(call), experts_(experts), residency_(residents, experts, slots, costs_.link),
          fading_(int(residents.size()), experts), guards_(costs_, int(residents.size()), experts, predicts), totals_(totals) {}
    Planner(const Planner&) = delete;

    // Whether a prediction is wanted: prefetching does not rest.
    bool prefetches() const { return !all_on_cpu_ && guards_.prefetch().on(); }
    // From now on the CPU has all experts, or what pays again: steps on the CPU copy nothing, prefetch nothing and swap nothing, and tell
    // the guards nothing.
    void put_all_on_cpu(bool all) { all_on_cpu_ = all; }

    // A layer's step that starts `now`, seconds on any clock, when `landed` copies are over: of all that plans asked for, and the first
    // residents', in the order they were asked for. Failure: an id is no expert.
    // `in_ram`: which experts are there, where some are on disk: others are copied on demand alone, and come last.
    StepPlan plan(int layer, const int64_t* ids, int64_t pairs, const Prediction& ahead, double now, uint64_t landed, StepCounts& counts,
                  const InRam* in_ram = nullptr);

    // Plans go by the CPU's times and the link's multiplied by these from now on.
    void correct(double cpu, double link);
    // Of the last plan, by the CPU's times as they were given: the seconds of its experts on the CPU in their call, and of all experts
    // there, without the call.
    double planned() const { return planned_; }
    double all_on_cpu() const { return all_on_cpu_seconds_; }

    const Residency& residency() const { return residency_; }
    const Guards& guards() const { return guards_; }
    // After a failure: the copies that fill all slots anew.
    std::vector<Fetch> reset() { return residency_.reset(); }

  private:
    void order_by_arrival(int layer, const Workload& workload, const InRam& in_ram, LayerPlan& plan) const;
    // Takes the slots that the plan's launches read and fetch into.
    std::vector<Launch> place(const Planned& step, double now);
    std::vector<int> choose(const Prediction& ahead, int layer, double now);

    ExpertCosts costs_;
    const ExpertCosts given_;
    const double call_;
    double planned_ = 0, all_on_cpu_seconds_ = 0;
    bool all_on_cpu_ = false;
    const int experts_;
    Residency residency_;
    Fading fading_;
    Guards guards_;
    Period period_;
    int64_t* const totals_;
};

}  // namespace dali
