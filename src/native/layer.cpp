#include "layer.h"

#include <stdexcept>

namespace dali {

int compute_layer(const ExpertLayout& layout, const LayerCall& call) {
    if (!call.tokens) return 0;  // no tensor of theirs has an address
    const int64_t pairs = int64_t(call.tokens) * call.top_k, experts = int64_t(call.records.size());
    std::vector<int64_t> workload(experts), begins(experts), offsets{0}, slots(pairs);
    for (int64_t i = 0; i < pairs; i++) {
        if (call.ids[i] < 0 || call.ids[i] >= experts) throw std::out_of_range("a router chose an expert that is not there");
        workload[call.ids[i]]++;
    }
    std::vector<const uint8_t*> active;
    for (int64_t expert = 0; expert < experts; expert++) {
        if (!workload[expert]) continue;
        begins[expert] = offsets.back();
        active.push_back(call.records[expert]);
        offsets.push_back(offsets.back() + workload[expert]);
    }
    for (int64_t i = 0; i < pairs; i++) slots[begins[call.ids[i]]++] = i;

    static thread_local std::vector<float> rows;
    if (rows.size() < size_t(pairs) * layout.hidden) rows.resize(size_t(pairs) * layout.hidden);
    compute_experts(layout, {int(active.size()), active.data(), offsets.data(), slots.data(), call.top_k, call.hidden, call.dtype,
                             rows.data()});
    std::vector<float> weights(pairs);
    read_row(call.weights, call.weights_dtype, 0, int(pairs), weights.data());
    reduce_slots(rows.data(), weights.data(), call.tokens, call.top_k, layout.hidden, call.dtype, call.out);
    return int(active.size());
}

}  // namespace dali
