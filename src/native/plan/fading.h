// Which experts stay, by fading workload: src/dali/policies/cache/fading.py in compiled form.
#pragma once

#include <array>

#include "plan/lanes.h"

namespace dali {

struct Swap {
    int evict, load;
};

class Fading {
  public:
    Fading(int layers, int experts) : layers_(layers, Layer(experts)) {}

    // Swaps after a layer's step. `residents`: as Residency has them; `fetched`: experts in its scratch slots; `unsettled`: residents to
    // leave as they are.
    std::vector<Swap> observe(int layer, const Workload& workload, const std::vector<Place>& residents, const std::vector<int>& fetched,
                              const std::vector<int>& unsettled);

  private:
    static constexpr std::array<double, 2> FADING = {0.85, 0.97};  // a step, of the fast and of the slow sum
    static constexpr int64_t MOST = 8;                             // tokens of one step that count for an expert, at least
    static constexpr double SLOW_SHARE = 0.4;                      // of the slow sum in a score

    struct Layer {
        explicit Layer(int experts) : sums{std::vector<double>(experts), std::vector<double>(experts)} {}
        std::array<std::vector<double>, 2> sums;
        std::array<double, 2> worth = {1.0, 1.0};  // a token's
        int64_t steps = 0;
    };
    std::vector<Layer> layers_;
};

}  // namespace dali
