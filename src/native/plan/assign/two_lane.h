// Two-lane assignment: the search of src/dali/policies/assign/two_lane.py, which says what is searched and why, in compiled form.
// Sums are taken in that file's order, so that both find the same plan.
#pragma once

#include "plan/lanes.h"

namespace dali {

constexpr double EQUAL = 1 + 1e-9;  // times that differ by less are the same sum, taken in another order

struct LayerExpert {
    int id;
    double cpu, gpu;  // seconds of its tokens, on the accelerator without the launch
};

struct LayerState {
    std::vector<LayerExpert> kept, absent;  // active ones by id: residents; neither those nor in flight
    struct Landing {
        LayerExpert expert;  // not active: its id is -1
        double seconds;
    };
    std::vector<Landing> landing;  // in flight, in the order they land
    Link link;
    double handover;
};

struct FoundPlan {
    LayerPlan plan;
    double seconds;
    bool proven;  // no plan is faster
};

FoundPlan search_two_lane(LayerState layer);

}  // namespace dali
