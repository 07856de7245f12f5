#include "ops/pairs.h"

#include <stdexcept>

namespace dali {

std::vector<int64_t> count_pairs(const int64_t* ids, int64_t pairs, int64_t experts) {
    std::vector<int64_t> workload(experts);
    for (int64_t i = 0; i < pairs; i++) {
        if (ids[i] < 0 || ids[i] >= experts) throw std::out_of_range("a router chose an expert that is not there");
        workload[ids[i]]++;
    }
    return workload;
}

std::vector<int64_t> order_pairs(const int64_t* ids, int64_t pairs, const std::vector<int64_t>& workload,
                                 const std::vector<int64_t>& order, int64_t* out) {
    const int64_t experts = int64_t(workload.size());
    std::vector<int64_t> offsets{0}, next(experts);
    offsets.reserve(order.size() + 1);
    for (const int64_t expert : order) {
        if (expert < 0 || expert >= experts) throw std::out_of_range("a plan names an expert that is not there");
        next[expert] = offsets.back();
        offsets.push_back(offsets.back() + workload[expert]);
    }
    if (offsets.back() != pairs) throw std::invalid_argument("a plan leaves out or repeats an expert");
    for (int64_t i = 0; i < pairs; i++) out[next[ids[i]]++] = i;
    return offsets;
}

}  // namespace dali
