#include "plan/residency.h"

#include <algorithm>
#include <stdexcept>

namespace dali {

Residency::Residency(const std::vector<std::vector<std::pair<int, int>>>& residents, int experts, int slots, double link_seconds)
    : experts_(experts), slots_(slots), link_seconds_(link_seconds), places_(residents.size(), std::vector<Place>(experts, Place::absent)),
      residents_(residents.size() * experts), scratch_(residents.size()), unsettled_(residents.size()) {
    std::vector<bool> taken(slots);
    for (size_t layer = 0; layer < residents.size(); layer++)
        for (const auto& [expert, slot] : residents[layer]) {
            places_[layer].at(expert) = Place::resident;
            at(int(layer), expert).slot = slot;
            taken.at(slot) = true;
            landed_ = ++queued_;
        }
    for (int slot = 0; slot < slots; slot++)
        if (!taken[slot]) free_.push_back(slot);
}

LayerView Residency::view(int layer, double now) {
    LayerView view;
    view.places = places_[layer];
    const auto fly = [&](int expert, double seconds) {
        view.places[expert] = Place::in_flight;
        view.in_flight.push_back({seconds, expert});
    };
    for (const int expert : unsettled(layer)) fly(expert, std::max(at(layer, expert).due - now, 0.0));
    for (const auto& [expert, holding] : scratch_[layer]) fly(expert, holding.copy <= landed_ ? 0.0 : std::max(holding.due - now, 0.0));
    std::sort(view.in_flight.begin(), view.in_flight.end(),
              [](const InFlight& a, const InFlight& b) { return a.seconds != b.seconds ? a.seconds < b.seconds : a.expert < b.expert; });
    view.slots = int64_t(free_.size() + scratch_[layer].size());
    view.link_free = std::max(link_free_ - now, 0.0);
    return view;
}

const std::vector<int>& Residency::unsettled(int layer) {
    std::vector<int>& all = unsettled_[layer];
    all.erase(std::remove_if(all.begin(), all.end(), [&](int expert) { return at(layer, expert).copy <= landed_; }), all.end());
    return all;
}

std::vector<int> Residency::scratch(int layer) const {
    std::vector<int> experts;
    for (const Waiting& one : scratch_[layer]) experts.push_back(one.expert);
    return experts;
}

std::vector<Residency::Waiting>::iterator Residency::waiting(int layer, int expert) {
    std::vector<Waiting>& all = scratch_[layer];
    return std::find_if(all.begin(), all.end(), [&](const Waiting& one) { return one.expert == expert; });
}

int Residency::slot(int layer, int expert) const {
    if (is_resident(layer, expert)) return at(layer, expert).slot;
    for (const Waiting& one : scratch_[layer])
        if (one.expert == expert) return one.holding.slot;
    throw std::logic_error("an expert is launched that has no slot");
}

int Residency::take_free() {
    if (free_.empty()) throw std::logic_error("an expert is fetched and no slot is free");
    const int slot = free_.front();
    free_.pop_front();
    return slot;
}

Residency::Holding Residency::queue(size_t count, double now) {
    link_free_ = std::max(link_free_, now) + double(count) * link_seconds_;
    queued_ += count;
    return {0, queued_, link_free_};
}

void Residency::fetch(int layer, const std::vector<int>& experts, double now) {
    Holding holding = queue(experts.size(), now);
    for (const int expert : experts) {
        holding.slot = take_free();
        scratch_[layer].push_back({expert, holding});
    }
}

void Residency::release(int layer, int expert) {
    const auto place = waiting(layer, expert);
    free_.push_back(place->holding.slot);
    scratch_[layer].erase(place);
}

void Residency::keep(int layer, int expert, const Holding& holding) {
    places_[layer][expert] = Place::resident;
    at(layer, expert) = holding;
    unsettled_[layer].push_back(expert);
}

void Residency::swap(int layer, int evict, int load, double now) {
    const int slot = at(layer, evict).slot;
    const auto place = waiting(layer, load);
    if (place != scratch_[layer].end()) {
        keep(layer, load, place->holding);
        scratch_[layer].erase(place);
        free_.push_back(slot);
    } else {
        Holding holding = queue(1, now);
        holding.slot = slot;
        keep(layer, load, holding);
    }
    std::vector<int>& unsettled = unsettled_[layer];
    unsettled.erase(std::remove(unsettled.begin(), unsettled.end(), evict), unsettled.end());
    places_[layer][evict] = Place::absent;
}

std::vector<Fetch> Residency::reset() {
    std::vector<bool> taken(slots_);
    std::vector<Fetch> copies;
    for (size_t layer = 0; layer < scratch_.size(); layer++) {
        scratch_[layer].clear();
        unsettled_[layer].clear();
        for (int expert = 0; expert < experts_; expert++) {
            if (!is_resident(int(layer), expert)) continue;
            Holding& holding = at(int(layer), expert);
            holding = {holding.slot, 0, 0};
            taken[holding.slot] = true;
            copies.push_back({int(layer), expert, holding.slot});
        }
    }
    free_.clear();
    for (int slot = 0; slot < slots_; slot++)
        if (!taken[slot]) free_.push_back(slot);
    queued_ = landed_ = copies.size();
    link_free_ = 0;
    return copies;
}

}  // namespace dali
