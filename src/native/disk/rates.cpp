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
        const double share = std::max(LEAST_SHARE, 1 / (layer.uses[before] + 1)), stays = 1 - share;
        float* row = layer.after.data() + size_t(before) * count;
        for (size_t expert = 0; expert < count; expert++) row[expert] = float(stays * row[expert]);
        for (const int expert : experts) row[expert] = float(row[expert] + share);
    }
}

void Rates::rank(Layer& layer, const std::vector<int>& experts) {
    const size_t count = layer.uses.size();
    std::vector<double> followed(count);
    for (const int before : experts) {
        const float* row = layer.after.data() + size_t(before) * count;
        for (size_t expert = 0; expert < count; expert++) followed[expert] += row[expert];
    }
    for (size_t expert = 0; expert < count; expert++) layer.ranks[expert] = layer.fast[expert] + SLOW_SHARE * layer.slow[expert];
    for (const int expert : experts) layer.ranks[expert] += NOW;
    const double many = double(std::max(experts.size(), size_t(1)));
    for (size_t expert = 0; expert < count; expert++) {
        const double mean = followed[expert] / many;
        const double likely = std::min(mean * mean / (layer.uses[expert] / double(layer.steps) + RARE), 1.0);
        layer.ranks[expert] = layer.cost * (layer.ranks[expert] + FOLLOWS * likely);
    }
}

}  // namespace dali
