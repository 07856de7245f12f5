// Two-lane assignment: the search of src/dali/policies/assign/two_lane.py, which says what is searched and why, in compiled form.
// Sums are taken in that file's order, so that both find the same plan.
#pragma once

#include <cstdint>
#include <vector>

namespace dali {

struct LayerExpert {
    int64_t id;
    double cpu, gpu;  // seconds of its tokens, on the accelerator without the launch
};

struct LayerState {
    std::vector<LayerExpert> kept, absent;  // active ones by id: residents; neither those nor in flight
    struct Landing {
        LayerExpert expert;  // not active: its id is -1
        double seconds;
    };
    std::vector<Landing> landing;  // in flight, in the order they land
    int64_t slots;
    double link_free, link, link_contended, launch, handover;
};

struct FoundPlan {
    std::vector<int64_t> cpu, gpu, fetch;
    double seconds;
    bool proven;  // no plan is faster
};

FoundPlan search_two_lane(LayerState layer);

}  // namespace dali
