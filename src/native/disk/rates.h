// How often each expert is used, by counts that fade: src/dali/policies/rates.py in compiled form.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace dali {

class Rates {
  public:
    Rates(int layers, int experts) : layers_(layers, Layer(experts)) {}

    // A layer's step: tokens[i] went to experts[i], and none to the others.
    void note(int layer, const std::vector<int>& experts, const std::vector<int64_t>& tokens);

    // The weighted share of a layer's tokens that went to an expert; 0 before the layer's first step.
    double of(int layer, int expert) const {
        const Layer& one = layers_[layer];
        return one.totals[0] ? one.sums[0][expert] / one.totals[0] + SLOW_SHARE * (one.sums[1][expert] / one.totals[1]) : 0.0;
    }

  private:
    static constexpr std::array<double, 2> FADING = {0.85, 0.97};  // a step, of the fast and of the slow sum
    static constexpr double SLOW_SHARE = 2.0;                      // of the slow one

    struct Layer {
        explicit Layer(int experts) : sums{std::vector<double>(experts), std::vector<double>(experts)} {}
        std::array<std::vector<double>, 2> sums;
        std::array<double, 2> totals = {0.0, 0.0}, worth = {1.0, 1.0};  // a token's: it grows where sums would have to fade
    };
    std::vector<Layer> layers_;
};

}  // namespace dali
