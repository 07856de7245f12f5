#include "plan/fading.h"

#include <algorithm>
#include <limits>

namespace dali {

namespace {

struct Scored {
    double score;
    int expert;
};

// The highest absent score for the lowest resident one.
template <class Score>
std::vector<Swap> best(const std::vector<Place>& places, Score&& score_of) {
    Scored load{0.0, -1}, evict{std::numeric_limits<double>::infinity(), -1};
    for (int expert = 0; expert < int(places.size()); expert++) {
        const double score = score_of(expert);
        if (places[expert] == Place::absent && score > load.score) load = {score, expert};
        if (places[expert] == Place::resident && score < evict.score) evict = {score, expert};
    }
    if (evict.expert >= 0 && load.score > evict.score) return {{evict.expert, load.expert}};
    return {};
}

}  // namespace

std::vector<Swap> Fading::observe(int layer, const Workload& workload, const std::vector<Place>& residents, const std::vector<int>& fetched,
                                  const std::vector<int>& unsettled) {
    auto& [sums, worth, steps] = layers_[layer];
    steps++;
    const double young = double(steps) / double(steps + 1);
    for (size_t place = 0; place < FADING.size(); place++) {
        worth[place] /= std::min(FADING[place], young);
        if (worth[place] > 1e100) {
            for (double& tokens : sums[place]) tokens /= worth[place];
            worth[place] = 1.0;
        }
    }
    int64_t routed = 0;
    for (const int expert : workload.active) routed += workload.tokens[expert];
    const int64_t most = std::max(MOST, 2 * routed / int64_t(workload.tokens.size()));
    auto& [fast, slow] = sums;
    for (const int expert : workload.active) {
        const double tokens = double(std::min(workload.tokens[expert], most));
        fast[expert] += tokens * worth[0];
        slow[expert] += tokens * worth[1];
    }
    const double share = SLOW_SHARE * worth[0] / worth[1];
    const auto score_of = [&, &fast = fast, &slow = slow](int expert) { return fast[expert] + share * slow[expert]; };
    std::vector<Place> places = residents;
    for (const int expert : unsettled) places[expert] = Place::in_flight;
    if (fetched.empty()) return best(places, score_of);

    std::vector<Scored> loads, victims;
    for (const int expert : fetched) loads.push_back({score_of(expert), expert});
    for (int expert = 0; expert < int(places.size()); expert++)
        if (places[expert] == Place::resident) victims.push_back({score_of(expert), expert});
    const size_t pairs = std::min(loads.size(), victims.size());
    const auto higher = [](const Scored& a, const Scored& b) { return a.score != b.score ? a.score > b.score : a.expert < b.expert; };
    const auto lower = [](const Scored& a, const Scored& b) { return a.score != b.score ? a.score < b.score : a.expert < b.expert; };
    std::sort(loads.begin(), loads.end(), higher);
    std::partial_sort(victims.begin(), victims.begin() + pairs, victims.end(), lower);
    std::vector<Swap> swaps;
    for (size_t i = 0; i < pairs; i++)
        if (loads[i].score > victims[i].score) swaps.push_back({victims[i].expert, loads[i].expert});
    return swaps;
}

}  // namespace dali
