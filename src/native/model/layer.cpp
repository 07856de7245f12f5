#include "model/layer.h"

#include <algorithm>

#include "disk/expert_cache.h"
#include "ops/pairs.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// Of some of a call's experts, by their places among all of them.
void compute_some(const ExpertLayout& layout, const ExpertsCall& all, const ExpertCache::Lease& lease, const std::vector<int>& places) {
    Workspace workspace;
    int64_t* pairs = workspace.take<int64_t>(size_t(all.offsets[all.experts]));
    std::vector<int64_t> offsets = {0};
    Records records;
    for (const int place : places) {
        const int64_t *first = all.pairs + all.offsets[place], *last = all.pairs + all.offsets[place + 1];
        std::copy(first, last, pairs + offsets.back());
        offsets.push_back(offsets.back() + (last - first));
        records.push_back(lease.at(place));
    }
    ExpertsCall some = all;
    some.experts = int(places.size());
    some.records = records.data();
    some.offsets = offsets.data();
    some.pairs = pairs;
    compute_experts(layout, some);
}

}  // namespace

int compute_layer(const ExpertLayout& layout, const LayerCall& call) {
    if (!call.tokens) return 0;  // no tensor of theirs has an address
    const int64_t pairs = int64_t(call.tokens) * call.top_k;
    const std::vector<int64_t> workload = count_pairs(call.ids, pairs, call.experts.count);
    std::vector<int64_t> order;
    for (size_t expert = 0; expert < workload.size(); expert++) {
        if (!workload[expert]) continue;
        order.push_back(int64_t(expert));
        if (call.workload) call.workload[expert] += workload[expert];
    }
    Workspace workspace;
    int64_t* by_expert = workspace.take<int64_t>(pairs);
    const std::vector<int64_t> offsets = order_pairs(call.ids, pairs, workload, order, by_expert);
    float* rows = workspace.take<float>(size_t(pairs) * layout.hidden);
    ExpertsCall all{int(order.size()), nullptr, offsets.data(), by_expert, call.top_k, call.hidden, call.dtype, rows};
    if (call.experts.cache) {
        ExpertCache::Lease lease(*call.experts.cache, call.experts.layer, {order.begin(), order.end()});
        if (call.meanwhile) (*call.meanwhile)();
        for (const std::vector<int>* there = &lease.next(); !there->empty(); there = &lease.next()) compute_some(layout, all, lease, *there);
    } else {
        Records active;
        for (const int64_t expert : order) active.push_back(call.experts.at[expert]);
        all.records = active.data();
        compute_experts(layout, all);
    }
    float* weights = workspace.take<float>(pairs);
    read_row(call.weights, call.weights_dtype, 0, int(pairs), weights);
    reduce_choices(rows, weights, call.tokens, call.top_k, layout.hidden, call.dtype, call.out);
    return int(order.size());
}

}  // namespace dali
