// A word in the host's memory that a kernel sets when what the host waits for is there.
#pragma once

#include <atomic>

#include "gpu/device.h"
#include "threads/pool.h"

namespace dali::gpu {

// Returns when the kernel, which is queued in `stream`, has set `flag` to `number`: what it wrote before is seen then.
inline void wait_for(const Device& device, const volatile uint32_t* flag, uint32_t number, Handle stream) {
    for (int spins = 1; *flag != number; spins++) {
        pause();
        if (spins % 256) continue;  // a fault of the GPU would never be seen in the flag
        const int result = device.driver.query_stream_(stream);
        if (result != NOT_READY) device.driver.check(result, "query_stream");
    }
    std::atomic_thread_fence(std::memory_order_acquire);
}

}  // namespace dali::gpu
