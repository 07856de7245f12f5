#include "disk/read_ahead.h"

#include <algorithm>
#include <cmath>

namespace dali {

std::vector<int> ranked(const int64_t* ids, int tokens, int top_k, const std::vector<bool>& there) {
    std::vector<int64_t> votes(there.size());
    std::vector<int> experts;
    for (int token = 0; token < tokens; token++) {
        for (int place = 0; place < top_k; place++) {
            const int expert = int(ids[int64_t(token) * top_k + place]);
            if (there[expert]) continue;
            if (!votes[expert]) experts.push_back(expert);
            votes[expert] += top_k - place;
        }
    }
    std::sort(experts.begin(), experts.end(), [&](int one, int other) {
        return votes[one] != votes[other] ? votes[one] > votes[other] : one < other;
    });
    return experts;
}

std::vector<int> ReadAhead::choose(int layer, const std::vector<int>& foreseen, double idle, double read) {
    foreseen_[layer] = foreseen;
    if (right_ < LIKELY * told_) return {};
    const double most = std::floor(idle / read + 0.5);
    return {foreseen.begin(), foreseen.begin() + int64_t(std::min(most, double(foreseen.size())))};
}

void ReadAhead::settle(int layer, const std::vector<int>& needed) {
    std::vector<int>& foreseen = foreseen_[layer];
    if (foreseen.empty()) return;
    int right = 0;
    for (const int expert : foreseen) right += std::binary_search(needed.begin(), needed.end(), expert);
    right_ = MEMORY * right_ + right;
    told_ = MEMORY * told_ + double(foreseen.size());
    foreseen.clear();
}

}  // namespace dali
