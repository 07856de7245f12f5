#include "model/layer.h"

#include "ops/pairs.h"
#include "threads/workspace.h"

namespace dali {

int compute_layer(const ExpertLayout& layout, const LayerCall& call) {
    if (!call.tokens) return 0;  // no tensor of theirs has an address
    const int64_t pairs = int64_t(call.tokens) * call.top_k;
    const std::vector<int64_t> workload = count_pairs(call.ids, pairs, int64_t(call.records.size()));
    std::vector<int64_t> order;
    Records active;
    for (size_t expert = 0; expert < workload.size(); expert++) {
        if (!workload[expert]) continue;
        order.push_back(int64_t(expert));
        active.push_back(call.records[expert]);
        if (call.workload) call.workload[expert] += workload[expert];
    }
    Workspace workspace;
    int64_t* by_expert = workspace.take<int64_t>(pairs);
    const std::vector<int64_t> offsets = order_pairs(call.ids, pairs, workload, order, by_expert);
    float* rows = workspace.take<float>(size_t(pairs) * layout.hidden);
    compute_experts(layout, {int(active.size()), active.data(), offsets.data(), by_expert, call.top_k, call.hidden, call.dtype, rows});
    float* weights = workspace.take<float>(pairs);
    read_row(call.weights, call.weights_dtype, 0, int(pairs), weights);
    reduce_choices(rows, weights, call.tokens, call.top_k, layout.hidden, call.dtype, call.out);
    return int(active.size());
}

}  // namespace dali
