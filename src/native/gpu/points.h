// What events tell: places in a queue that others wait for, and how long copies take.
#pragma once

#include <array>
#include <utility>

#include "gpu/device.h"

namespace dali::gpu {

// Places in a queue. An event is recorded only where somebody waits, and nobody waits twice.
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

// How long copies take on the GPU: of those under way at a time one is measured, which costs next to nothing.
class CopyTimer {
  public:
    explicit CopyTimer(const Device& device) : device_(device), begun_(create_event(device, true)), ended_(create_event(device, true)) {}

    // A copy comes next; whether it is measured. Then ended() once it is queued, and over() once it is over.
    bool begin(Handle stream) {
        if (timing_) return false;
        DALI_CUDA(device_.driver, record_event, begun_.get(), stream);
        return timing_ = true;
    }
    void ended(Handle stream) { DALI_CUDA(device_.driver, record_event, ended_.get(), stream); }
    void over() {
        float milliseconds = 0;
        DALI_CUDA(device_.driver, elapsed, &milliseconds, begun_.get(), ended_.get());
        copies_++;
        seconds_ += double(milliseconds) / 1e3;
        timing_ = false;
    }

    // Copies that were measured and are over, and the seconds they took together, since last asked.
    std::pair<int, double> take() { return {std::exchange(copies_, 0), std::exchange(seconds_, 0.0)}; }

    // After a failure: no copy is under way.
    void forget() { timing_ = false; }

  private:
    const Device& device_;
    EventHandle begun_, ended_;
    bool timing_ = false;
    int copies_ = 0;
    double seconds_ = 0;
};

}  // namespace dali::gpu
