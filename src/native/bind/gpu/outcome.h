// What an MoE layer's step did, as Python is told.
#pragma once

#include <tuple>

#include "bind/plan/step_plan.h"
#include "gpu/layers.h"

namespace dali {

// Counts as Planner.plan() has them, then seconds from the routing's arrival: all, to plan, of the CPU's experts; those waited for it; and
// by the planner's times those of the CPU's experts, and of all experts there.
inline auto outcome_of(const gpu::StepOutcome& outcome) {
    return std::tuple_cat(counts_of(outcome.counts), std::make_tuple(outcome.seconds, outcome.plan_seconds, outcome.cpu_seconds,
                                                                  outcome.waited_seconds, outcome.cpu_planned, outcome.all_on_cpu));
}

}  // namespace dali
