#include "disk/rates.h"

#include <cstddef>

namespace dali {

void Rates::note(int layer, const std::vector<int>& experts, const std::vector<int64_t>& tokens) {
    Layer& one = layers_[layer];
    for (std::size_t place = 0; place < FADING.size(); place++) {
        double &worth = one.worth[place], &total = one.totals[place];
        worth /= FADING[place];
        if (worth > 1e100) {
            for (double& sum : one.sums[place]) sum /= worth;
            total /= worth;
            worth = 1.0;
        }
        for (std::size_t i = 0; i < experts.size(); i++) {
            one.sums[place][experts[i]] += double(tokens[i]) * worth;
            total += double(tokens[i]) * worth;
        }
    }
}

}  // namespace dali
