// Where every expert is on the accelerator: src/dali/runtime/residency.py in compiled form, by the numbers of slots. What it decides to
// copy is its caller's to queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "plan/lanes.h"
#include "plan/step_plan.h"

namespace dali {

class Residency {
  public:
    // `residents`: each layer's (expert, slot); the other slots are free. `link_seconds`: of one copy.
    Residency(const std::vector<std::vector<std::pair<int, int>>>& residents, int experts, int slots, double link_seconds);

    // From now on a copy is expected to take so long.
    void expect(double link_seconds) { link_seconds_ = link_seconds; }
    // `landed`: copies that are over, of all there ever were or since the last reset(), the residents' first ones included.
    void settle(uint64_t landed) { landed_ = landed; }
    LayerView view(int layer, double now);

    // By expert: resident if it holds one of the layer's own slots, landed or not; else absent.
    const std::vector<Place>& residents(int layer) const { return places_[layer]; }
    bool is_resident(int layer, int expert) const { return places_[layer][expert] == Place::resident; }
    // Residents whose copy was not seen to land.
    const std::vector<int>& unsettled(int layer);
    // Experts in scratch slots that wait for the layer, the first fetched first.
    std::vector<int> scratch(int layer) const;
    int free_slots() const { return int(free_.size()); }
    int slot(int layer, int expert) const;

    // One copy of experts into free scratch slots.
    void fetch(int layer, const std::vector<int>& experts, double now);
    // Gives a scratch slot back.
    void release(int layer, int expert);
    // Makes `load` a resident instead of `evict`: the slots change roles where it is in scratch; else it has to be copied.
    void swap(int layer, int evict, int load, double now);

    // After a failure: what slots hold is unknown. The copies that fill the residents' anew; there is nothing else then.
    std::vector<Fetch> reset();

  private:
    struct Holding {
        int slot = 0;
        uint64_t copy = 0;  // that filled it, the last one of those that go together
        double due = 0;     // when that is expected to end
    };
    struct Waiting {
        int expert;
        Holding holding;
    };

    Holding& at(int layer, int expert) { return residents_[size_t(layer) * experts_ + expert]; }
    const Holding& at(int layer, int expert) const { return residents_[size_t(layer) * experts_ + expert]; }
    std::vector<Waiting>::iterator waiting(int layer, int expert);
    // Counts copies that go together; what they fill.
    Holding queue(size_t count, double now);
    void keep(int layer, int expert, const Holding& holding);
    int take_free();

    const int experts_, slots_;
    double link_seconds_;
    double link_free_ = 0;
    uint64_t queued_ = 0, landed_ = 0;  // copies
    std::vector<std::vector<Place>> places_;
    std::vector<Holding> residents_;  // by layer and expert
    std::vector<std::vector<Waiting>> scratch_;
    std::vector<std::vector<int>> unsettled_;  // and some that have landed since
    std::deque<int> free_;
};

}  // namespace dali
