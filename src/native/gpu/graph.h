// Work of a queue that is recorded once and queued again by one call: what the host pays a launch for each kernel is paid once.
#pragma once

#include <utility>

#include "gpu/device.h"

namespace dali::gpu {

using GraphHandle = Owned<Handle, &Driver::destroy_graph_>;
using CapturedHandle = Owned<Handle, &Driver::destroy_captured_>;

// Kernels and copies in their order, with the parameters they were captured with: what changes from launch to launch must be read from
// memory. That memory and the kernels' modules must outlive the graph.
class Graph {
  public:
    Graph() = default;
    Graph(const Device& device, GraphHandle handle) : device_(&device), handle_(std::move(handle)) {}
    explicit operator bool() const { return device_; }

    // Queues it all, in any stream: the driver's own (0) and torch's, too.
    void launch(Handle stream) const { DALI_CUDA(device_->driver, launch_graph, handle_.get(), stream); }

  private:
    const Device* device_ = nullptr;
    GraphHandle handle_;
};

// What queue() queues in `stream`, which must be one made for this (create_stream): the driver captures neither its own stream 0 nor one
// that anything else uses meanwhile. Nothing of it runs. queue() allocates, frees and waits for nothing: the driver refuses that to the
// capturing thread; other threads go on. Throws what queue() throws and Failure; then the stream is as before.
template <class F>
Graph capture(const Device& device, Handle stream, F&& queue) {
    constexpr int THREAD_LOCAL = 1;  // as cuda.h numbers it
    DALI_CUDA(device.driver, begin_capture, stream, THREAD_LOCAL);
    Handle captured = nullptr;
    try {
        queue();
    } catch (...) {
        device.driver.end_capture_(stream, &captured);  // what it says was said before
        if (captured) CapturedHandle(device, captured);
        throw;
    }
    DALI_CUDA(device.driver, end_capture, stream, &captured);
    const CapturedHandle source(device, captured);
    Handle graph = nullptr;
    DALI_CUDA(device.driver, make_graph, &graph, captured, 0);
    return {device, {device, graph}};
}

}  // namespace dali::gpu
