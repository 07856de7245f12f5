// One GPU: its memory, queues and kernels, each freed by its owner's end.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "gpu/driver.h"

namespace dali::gpu {

class Device {
  public:
    // Number `number` of those the driver lists; its primary context, which torch uses too.
    Device(const std::string& library, int number);
    ~Device();
    Device(const Device&) = delete;

    // Makes the device the calling thread's.
    void enter() const { DALI_CUDA(driver, set_context, context_); }
    int attribute(int which) const;
    std::string name() const;
    int sm() const;  // compute capability, as in 89
    std::pair<size_t, size_t> memory() const;  // free and all, bytes

    const Driver driver;

  private:
    int device_ = 0;
    Handle context_ = nullptr;
};

// What frees itself: `release` is the driver's call that does.
template <class T, int (*Driver::*release)(T)>
class Owned {
  public:
    Owned() = default;
    Owned(const Device& device, T value) : device_(&device), value_(value) {}
    Owned(Owned&& other) noexcept : device_(std::exchange(other.device_, nullptr)), value_(other.value_) {}
    Owned& operator=(Owned&& other) noexcept {
        std::swap(device_, other.device_);
        std::swap(value_, other.value_);
        return *this;
    }
    ~Owned() {
        if (!device_) return;
        try {
            device_->enter();
            (device_->driver.*release)(value_);  // what it says is of no use here
        } catch (const Failure&) {
        }
    }
    T get() const { return value_; }

  private:
    const Device* device_ = nullptr;
    T value_{};
};

using DeviceMemory = Owned<Address, &Driver::release_>;
using HostMemory = Owned<void*, &Driver::release_host_>;
using Registered = Owned<void*, &Driver::unregister_host_>;
using StreamHandle = Owned<Handle, &Driver::destroy_stream_>;
using EventHandle = Owned<Handle, &Driver::destroy_event_>;
using ModuleHandle = Owned<Handle, &Driver::unload_module_>;

DeviceMemory allocate(const Device& device, size_t bytes);
HostMemory allocate_host(const Device& device, size_t bytes);  // page-locked, at the same address on the device
Registered register_host(const Device& device, void* memory, size_t bytes);
StreamHandle create_stream(const Device& device);
EventHandle create_event(const Device& device, bool timed = false);

// A compiled file of kernels, each called with one struct and a number of warps.
class Module {
  public:
    Module(const Device& device, const void* cubin);
    Handle function(const char* name) const;
    // One of its kernels, with the struct at `call`.
    void launch(const char* name, const void* call, int64_t warps, Handle stream) const;

  private:
    const Device& device_;
    ModuleHandle handle_;
};

constexpr int WARPS = 4;  // of a block

void launch_at(const Device& device, Handle function, int64_t warps, Handle stream, const void* call);

template <class Call>
void launch(const Device& device, Handle function, int64_t warps, Handle stream, const Call& call) {
    launch_at(device, function, warps, stream, &call);
}

}  // namespace dali::gpu
