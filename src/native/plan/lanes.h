// The lane model of src/dali/policies/lanes.py, which says what is modelled and why, in compiled form: what a plan is made from, what
// it is, and when its lanes are done. Sums are taken in that file's order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dali {

// Seconds, as src/dali/hardware/cost.py has them.
struct ExpertCosts {
    std::vector<double> cpu, gpu;  // by tokens; the GPU's without the launch
    double link, link_contended, launch, handover;
};

inline bool contains(const std::vector<int>& experts, int expert) {
    return std::find(experts.begin(), experts.end(), expert) != experts.end();
}

// A layer's tokens by expert, and the experts that have any, ascending.
struct Workload {
    std::vector<int64_t> tokens;
    std::vector<int> active;
};
Workload workload_of(const int64_t* ids, int64_t pairs, int experts);

enum class Place : uint8_t { absent, resident, in_flight };

struct InFlight {
    double seconds;  // until it has landed
    int expert;
};

// A layer's experts as a plan finds them.
struct LayerView {
    std::vector<Place> places;        // by expert
    std::vector<InFlight> in_flight;  // in the order they land, ties to the lower id
    int64_t slots = 0;
    double link_free = 0;
};

// As src/dali/policies/plan.py has it.
struct LayerPlan {
    std::vector<int> cpu, gpu, fetch;
};

// What the accelerator's lane depends on beside its experts.
struct Link {
    int64_t slots;
    double free, alone, contended, launch;
};

// An expert in flight; `seconds`: its launch and compute, 0 where it is not computed there.
struct Arrival {
    double landed, seconds;
};

// Fetched experts that are copied and launched together.
int64_t group_size(int64_t slots);

// Seconds until the accelerator is done. `fetched`: launch and compute in copy order; `released`: memory to work in.
double accelerator_end(double resident_seconds, const std::vector<Arrival>& arrivals, const std::vector<double>& fetched, const Link& link,
                       double cpu_end, std::vector<double>& released);

// Seconds until the last lane is done.
double makespan(const LayerPlan& plan, const Workload& workload, const LayerView& view, const ExpertCosts& costs);

}  // namespace dali
