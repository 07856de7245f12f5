#include "disk/rates.h"

namespace dali {

Rates::Rates(std::vector<double> costs, int experts) {
    for (const double cost : costs) layers_.push_back({cost, std::vector<double>(experts), std::vector<double>(experts)});
}

void Rates::note(int layer, const std::vector<int>& experts) {
    turn_ = layer;
    Layer& one = layers_[layer];
    for (double& uses : one.fast) uses *= FAST;
    for (double& uses : one.slow) uses *= SLOW;
    for (const int expert : experts) {
        one.fast[expert] += 1;
        one.slow[expert] += 1;
    }
}

}  // namespace dali
