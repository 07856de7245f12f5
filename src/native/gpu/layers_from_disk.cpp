// A layer's step whose experts are leased from a cache, of which memory holds a part.
#include <algorithm>

#include "gpu/layers.h"

namespace dali::gpu {

// Lets copies end until so many slots of memory are without a lease, beside those that the experts would take, or no copy is left.
void Layers::let_copies_end(ExpertCache& cache, int layer, const std::vector<int>& experts, int more) {
    landed();
    while (cache.room(layer, experts) < more && !flying_.empty()) {
        DALI_CUDA(device_.driver, finish_stream, copies_.stream());  // landed() has asked for the oldest one's end
        landed();
    }
}

// An expert's bytes for its copy, waited for.
std::unique_ptr<ExpertCache::Lease> Layers::lease(const Fetch& fetch) {
    const LayerExperts& experts = layers_.at(fetch.layer).experts;
    let_copies_end(*experts.cache, experts.layer, {fetch.expert}, 0);
    auto lease = std::make_unique<ExpertCache::Lease>(*experts.cache, experts.layer, std::vector<int>{fetch.expert}, ExpertCache::Lease::Unnoted());
    lease->next(true);
    return lease;
}

// Queues what is there; computes on the CPU whenever there is nothing to queue. Slots of the accelerator are filled in the plan's order,
// in which it has counted on them: of experts that are copied, reads are asked for in that order, and before the CPU's.
double Layers::start_from_disk(const Layer& layer, const StepPlan& plan) {
    ExpertCache& cache = *layer.experts.cache;
    std::vector<int> wanted;
    for (const Launch& one : plan.launches)
        if (one.fetch) wanted.insert(wanted.end(), one.experts.begin(), one.experts.end());
    const size_t copied = wanted.size();
    wanted.insert(wanted.end(), plan.cpu.begin(), plan.cpu.end());
    std::vector<int> ascending = wanted;
    std::sort(ascending.begin(), ascending.end());
    landed();
    cache.note(layer.experts.layer, ascending);
    ExpertCache::Lease lease(cache, layer.experts.layer, wanted, ExpertCache::Lease::Unnoted());

    std::vector<bool> arrived(wanted.size());
    std::vector<size_t> waiting;  // for the CPU
    double seconds = 0;
    const auto advance = [&] {
        if (!waiting.empty()) {
            OnCpu work;
            for (const size_t place : waiting) {
                for (const int pair : pairs_of_.at(wanted[place])) work.pairs.push_back(pair);
                work.offsets.push_back(int64_t(work.pairs.size()));
                work.records.push_back(lease.at(int(place)));
            }
            seconds += compute(layer, work);
            for (const size_t place : waiting) lease.give_back_told(int(place));
            waiting.clear();
            return;
        }
        let_copies_end(cache, layer.experts.layer, {}, 1);
        for (const int place : lease.next(true)) {
            if (arrived[place]) continue;
            arrived[place] = true;
            if (size_t(place) >= copied) waiting.push_back(size_t(place));
        }
    };
    size_t place = 0;
    for (const Launch& one : plan.launches) {
        for (size_t i = 0; one.fetch && i < one.experts.size(); i++, place++) {
            while (!arrived[place]) advance();
            copy({layer_, one.experts[i], one.slots.at(i)});
            lease.give_back_told(int(place));
        }
        launch_all(layer, one);
    }
    // Those that went meanwhile are read again, once nobody is in their way.
    auto fetch = plan.fetches.begin();
    for (; fetch != plan.fetches.end() && in_ram_(fetch->layer, fetch->expert); fetch++) copy(*fetch);
    while (!waiting.empty() || std::find(arrived.begin(), arrived.end(), false) != arrived.end()) advance();
    for (; fetch != plan.fetches.end(); fetch++) copy(*fetch);
    return seconds;
}

}  // namespace dali::gpu
