#include "gpu/device.h"

namespace dali::gpu {

namespace {

// As cuda.h numbers them.
constexpr int MAJOR = 75, MINOR = 76;
constexpr unsigned NO_TIMING = 2, NON_BLOCKING = 1, PORTABLE_MAPPED = 1 | 2;

}  // namespace

Device::Device(const std::string& library, int number) : driver(library) {
    int count = 0;
    DALI_CUDA(driver, device_count, &count);
    if (number < 0 || number >= count)
        throw Failure(0, "there are " + std::to_string(count) + " GPUs, and no number " + std::to_string(number));
    DALI_CUDA(driver, get_device, &device_, number);
    DALI_CUDA(driver, retain_context, &context_, device_);
    try {
        enter();
    } catch (const Failure&) {
        driver.release_context_(device_);
        throw;
    }
}

Device::~Device() { driver.release_context_(device_); }

int Device::attribute(int which) const {
    int value = 0;
    DALI_CUDA(driver, device_attribute, &value, which, device_);
    return value;
}

std::string Device::name() const {
    char text[256] = {};
    DALI_CUDA(driver, device_name, text, int(sizeof text) - 1, device_);
    return text;
}

int Device::sm() const { return attribute(MAJOR) * 10 + attribute(MINOR); }

std::pair<size_t, size_t> Device::memory() const {
    size_t free = 0, all = 0;
    DALI_CUDA(driver, memory, &free, &all);
    return {free, all};
}

DeviceMemory allocate(const Device& device, size_t bytes) {
    Address at = 0;
    DALI_CUDA(device.driver, allocate, &at, bytes);
    return {device, at};
}

HostMemory allocate_host(const Device& device, size_t bytes) {
    void* at = nullptr;
    DALI_CUDA(device.driver, allocate_host, &at, bytes, PORTABLE_MAPPED);
    return {device, at};
}

Registered register_host(const Device& device, void* memory, size_t bytes) {
    DALI_CUDA(device.driver, register_host, memory, bytes, PORTABLE_MAPPED);
    return {device, memory};
}

StreamHandle create_stream(const Device& device) {
    Handle stream = nullptr;
    DALI_CUDA(device.driver, create_stream, &stream, NON_BLOCKING);
    return {device, stream};
}

EventHandle create_event(const Device& device, bool timed) {
    Handle event = nullptr;
    DALI_CUDA(device.driver, create_event, &event, timed ? 0 : NO_TIMING);
    return {device, event};
}

Module::Module(const Device& device, const void* cubin) : device_(device) {
    Handle module = nullptr;
    DALI_CUDA(device.driver, load_module, &module, cubin);
    handle_ = {device, module};
}

Handle Module::function(const char* name) const {
    Handle function = nullptr;
    DALI_CUDA(device_.driver, get_function, &function, handle_.get(), name);
    return function;
}

void Module::launch(const char* name, const void* call, int64_t warps, Handle stream) const {
    device_.enter();
    launch_at(device_, function(name), warps, stream, call);
}

void launch_at(const Device& device, Handle function, int64_t warps, Handle stream, const void* call) {
    if (warps <= 0) return;
    void* parameters[] = {const_cast<void*>(call)};
    DALI_CUDA(device.driver, launch, function, unsigned((warps + WARPS - 1) / WARPS), 1, 1, 32 * WARPS, 1, 1, 0, stream, parameters, nullptr);
}

}  // namespace dali::gpu
