#include "plan/guards.h"

#include <algorithm>

#include "plan/assign/assign.h"

namespace dali {

namespace {

template <class Keep>
LayerView only(LayerView view, Keep&& keep) {  // of the experts in flight
    std::vector<InFlight> kept;
    for (const InFlight& one : view.in_flight) {
        if (keep(one.expert)) kept.push_back(one);
        else view.places[one.expert] = Place::absent;
    }
    view.in_flight = std::move(kept);
    return view;
}

}  // namespace

void Guard::note(double cost, double benefit) {
    if (!now_.on) {
        if (--now_.resting == 0) now_.on = now_.trial = true;
        return;
    }
    now_.cost += cost;
    now_.benefit += benefit;
    if (++now_.steps < WINDOW) return;
    const double bar = now_.cost * (now_.trial ? 1 + MARGIN : 1 - MARGIN);
    if (now_.benefit >= bar) {
        now_.trial = false;
        now_.next_rest = REST;
    } else {
        now_.on = false;
        now_.resting = now_.next_rest;
        now_.next_rest = std::min(2 * now_.next_rest, LONGEST_REST);
    }
    now_.steps = 0;
    now_.cost = now_.benefit = 0;
}

void CopiedSwaps::note(const Swap& swap, bool copied) {
    const int undone = instead_[swap.evict] == NONE ? swap.evict : instead_[swap.evict];
    count_ -= instead_[swap.evict] != NONE;
    instead_[swap.evict] = NONE;
    if (!copied) return;
    count_ += instead_[swap.load] == NONE;
    instead_[swap.load] = undone;
}

std::vector<Place> CopiedSwaps::undone(std::vector<Place> residents) const {
    for (size_t expert = 0; expert < instead_.size(); expert++)
        if (instead_[expert] != NONE) residents[expert] = Place::absent;
    for (const int expert : instead_)
        if (expert != NONE) residents[expert] = Place::resident;
    return residents;
}

void CopiedSwaps::clear() {
    instead_.assign(instead_.size(), NONE);
    count_ = 0;
}

Guards::Guards(const ExpertCosts& costs, int layers, int experts, bool predicts)
    : costs_(costs), predicts_(predicts), copied_(layers, CopiedSwaps(experts)) {}

std::vector<Swap> Guards::allow(int layer, std::vector<Swap> swaps, const std::vector<int>& fetched, double link_free) {
    const auto copied = [&](const Swap& swap) { return !contains(fetched, swap.load); };
    if (!swap_.on() || link_free > costs_.link) swaps.erase(std::remove_if(swaps.begin(), swaps.end(), copied), swaps.end());
    for (const Swap& swap : swaps) copied_[layer].note(swap, copied(swap));
    return swaps;
}

void Guards::settle(const Planned& step, const std::vector<int>& waiting, const std::vector<Place>& residents, double predict_seconds) {
    const auto& [layer, workload, view, plan] = step;
    const int prefetches = prefetches_, swaps = swaps_;
    if (!plan.fetch.empty() || !view.link_free) prefetches_ = swaps_ = 0;  // by the layer's end they have left the link
    if (++steps_ % SAMPLE) return;
    LayerView idle = view;
    idle.link_free = 0;
    const double seconds = view.link_free ? best(workload, idle) : makespan(plan, workload, idle, costs_);
    const double delay = (makespan(plan, workload, view, costs_) - seconds) / double(std::max(prefetches + swaps, 1));
    if (predicts_) {
        double saved = 0;
        if (prefetch_.on() && !waiting.empty())
            saved = best(workload, only(idle, [&](int expert) { return !contains(waiting, expert); })) - seconds;
        prefetch_.note(predict_seconds + delay * prefetches, saved);
    }
    const bool any = copied_[layer].any();
    if (!any && swap_.on()) return;
    double saved = 0;
    if (swap_.on()) {
        const std::vector<Place> undone = copied_[layer].undone(residents);
        LayerView without =
            only(idle, [&](int expert) { return contains(waiting, expert) && undone[expert] == Place::absent; });
        without.places = undone;
        for (const InFlight& one : without.in_flight) without.places[one.expert] = Place::in_flight;
        saved = best(workload, without) - seconds;
    }
    swap_.note(delay * swaps, saved);
    if (!swap_.on())
        for (CopiedSwaps& copied : copied_) copied.clear();
}

double Guards::best(const Workload& workload, const LayerView& view) const {
    return makespan(assign(workload, view, costs_), workload, view, costs_);
}

void Period::start(int layer, double now) {
    if (layer) {  // from the last layer to the first there is more than a layer
        const double since = now - started_;
        seconds_ = seconds_ == 0 ? since : 0.9 * seconds_ + 0.1 * since;
    }
    started_ = now;
}

}  // namespace dali
