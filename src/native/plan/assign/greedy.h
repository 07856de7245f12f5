// Greedy assignment: src/dali/policies/assign/greedy.py in compiled form.
#pragma once

#include "plan/lanes.h"

namespace dali {

LayerPlan greedy(const Workload& workload, const LayerView& view, const ExpertCosts& costs);

}  // namespace dali
