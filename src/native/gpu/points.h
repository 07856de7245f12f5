// Places in a queue that others wait for. An event is recorded only where somebody waits, and nobody waits twice.
#pragma once

#include <array>

#include "gpu/device.h"

namespace dali::gpu {

class Points {
  public:
    explicit Points(const Device& device) : device_(device) {
        for (EventHandle& event : events_) event = create_event(device);
    }

    void follow(Handle stream) { stream_ = stream; }
    Handle stream() const { return stream_; }

    // The place after all that is queued so far and until the next event.
    uint64_t here() const { return recorded_ + 1; }

    // Whether all up to `place` is over.
    bool reached(uint64_t place) {
        if (place <= reached_) return true;
        const int result = device_.driver.query_event_(event(place));
        if (result == NOT_READY) return false;
        device_.driver.check(result, "query_event");
        reached_ = place;
        return true;
    }

    // Makes `other`, which has waited for all up to `waited`, wait for `place`.
    void before(Handle other, uint64_t& waited, uint64_t place) {
        if (place <= waited) return;
        DALI_CUDA(device_.driver, wait_event, other, event(place), 0);
        waited = place;
    }

    // After a failure: all is over, or lost.
    void forget() { reached_ = ++recorded_; }

  private:
    static constexpr uint64_t KEPT = 64;  // older places are taken for the oldest kept, which is later and does as well

    Handle event(uint64_t& place) {
        if (place > recorded_) {
            DALI_CUDA(device_.driver, record_event, events_[(recorded_ + 1) % KEPT].get(), stream_);
            recorded_++;
        }
        if (recorded_ - place >= KEPT) place = recorded_ - KEPT + 1;
        return events_[place % KEPT].get();
    }

    const Device& device_;
    Handle stream_ = nullptr;
    std::array<EventHandle, KEPT> events_;
    uint64_t recorded_ = 0, reached_ = 0;
};

}  // namespace dali::gpu
