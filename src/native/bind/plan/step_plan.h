// Plans of steps as Python has them.
#pragma once

#include <tuple>
#include <vector>

#include "plan/planner.h"

namespace dali {

using LaunchParts = std::tuple<std::vector<int>, std::vector<int>, bool>;  // experts, slots, whether they are fetched
using FetchParts = std::tuple<int, int, int>;                              // layer, expert, slot

// cpu, resident, prefetched, fetched, late, wasted, swaps, those of them that copy, copies ahead
inline auto counts_of(const StepCounts& counts) {
    return std::make_tuple(counts.cpu, counts.resident, counts.prefetched, counts.fetched, counts.late, counts.wasted, counts.swaps,
                           counts.copied_swaps, counts.ahead);
}

inline std::vector<FetchParts> parts_of(const std::vector<Fetch>& fetches) {
    std::vector<FetchParts> parts;
    for (const Fetch& fetch : fetches) parts.emplace_back(fetch.layer, fetch.expert, fetch.slot);
    return parts;
}

}  // namespace dali
