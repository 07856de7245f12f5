// A model's dense weights on their way to the GPU: named by where they lie in the host's memory, gathered, then allocated and copied as one.
#pragma once

#include <map>
#include <vector>

#include "gpu/cut.h"

namespace dali::gpu {

class Uploads {
  public:
    // Ask for `bytes` from `host` on; null is nobody's.
    void add(const void* host, size_t bytes) {
        if (!host || places_.count(host)) return;
        places_[host] = {bytes_, bytes};
        bytes_ = round_up(bytes_ + bytes, ALIGNED);
    }

    // What all of it takes.
    size_t bytes() const { return bytes_; }

    // Allocates, and returns when all copies are over. Failure where the GPU lacks the memory.
    void put(const Device& device, Handle stream) {
        memory_ = allocate(device, bytes_);
        for (const auto& [host, place] : places_) DALI_CUDA(device.driver, copy_up, memory_.get() + place.at, host, place.bytes, stream);
        DALI_CUDA(device.driver, finish_stream, stream);
    }

    // Where on the GPU lies what was asked for; null of null.
    template <class T>
    const T* of(const T* host) const {
        return host ? reinterpret_cast<const T*>(memory_.get() + places_.at(host).at) : nullptr;
    }

  private:
    struct Place {
        size_t at, bytes;
    };
    std::map<const void*, Place> places_;
    size_t bytes_ = 0;
    DeviceMemory memory_;
};

}  // namespace dali::gpu
