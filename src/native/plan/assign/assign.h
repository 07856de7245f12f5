// The default assignment, two_lane, as src/dali/policies/assign/two_lane.py has it: what its search finds, unless greedy or the CPU
// alone may be faster.
#pragma once

#include "plan/lanes.h"

namespace dali {

LayerPlan assign(const Workload& workload, const LayerView& view, const ExpertCosts& costs);

}  // namespace dali
