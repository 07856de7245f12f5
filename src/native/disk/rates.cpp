#include "disk/rates.h"

#include <algorithm>

namespace dali {

Rates::Rates(std::vector<double> costs, int experts) {
    const std::vector<double> none(experts);
    for (const double cost : costs) layers_.push_back({cost, none, none, none, 0, {}, std::vector<float>(size_t(experts) * experts), none});
}

void Rates::note(int layer, const std::vector<int>& experts) {
    turn_ = layer;
    Layer& one = layers_[layer];
    learn(one, experts);
    for (double& uses : one.fast) uses *= FAST;
    for (double& uses : one.slow) uses *= SLOW;
    for (const int expert : experts) {
        one.fast[expert] += 1;
        one.slow[expert] += 1;
        one.uses[expert] += 1;
    }
    one.steps++;
    one.last = experts;
    rank(one, experts);
}

// What has followed the experts of the step before.
void Rates::learn(Layer& layer, const std::vector<int>& experts) {
    const size_t count = layer.uses.size();
    for (const int before : layer.last) {
        const float share = float(std::max(LEAST_SHARE, 1 / (layer.uses[before] + 1)));
        float* row = layer.after.data() + size_t(before) * count;
        for (size_t expert = 0; expert < count; expert++) row[expert] -= share * row[expert];
        for (const int expert : experts) row[expert] += share;
    }
}

void Rates::rank(Layer& layer, const std::vector<int>& experts) {
    const size_t count = layer.uses.size();
    std::vector<float> followed(count);
    for (const int before : experts) {
        const float* row = layer.after.data() + size_t(before) * count;
        for (size_t expert = 0; expert < count; expert++) followed[expert] += row[expert];
    }
    for (size_t expert = 0; expert < count; expert++) layer.ranks[expert] = layer.fast[expert] + SLOW_SHARE * layer.slow[expert];
    for (const int expert : experts) layer.ranks[expert] += NOW;
    for (size_t expert = 0; expert < count; expert++) {
        const double mean = experts.empty() ? 0 : followed[expert] / double(experts.size());
        const double likely = std::min(mean * mean / (layer.uses[expert] / double(layer.steps) + RARE), 1.0);
        layer.ranks[expert] = layer.cost * (layer.ranks[expert] + FOLLOWS * likely);
    }
}

}  // namespace dali
