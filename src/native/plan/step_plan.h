// What a layer's step does beside its kernels: which experts run where, and which copies go into which slots.
#pragma once

#include <vector>

namespace dali {

// Experts that are launched together, in slots; `fetch`: they are copied there first.
struct Launch {
    std::vector<int> experts, slots;
    bool fetch;
};

// A copy of an expert into a slot.
struct Fetch {
    int layer, expert, slot;
};

struct StepPlan {
    std::vector<int> cpu;          // experts, in order
    std::vector<Launch> launches;  // in order
    std::vector<Fetch> fetches;    // behind those of the launches
};

}  // namespace dali
