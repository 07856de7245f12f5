// What the host must know of a step, on its way there: the host plans as soon as it sees the flag, with nothing waited for.
#pragma once

#include "arithmetic.cuh"
#include "calls.h"

namespace dali::gpu {

// One warp.
DALI_KERNEL post(DALI_CALL(PostCall) call) {
    if (warp_of_launch()) return;
    for (int part = 0; part < POSTED; part++)
        for (int i = lane_of_warp(); i < call.words[part]; i += 32)
            static_cast<uint32_t*>(call.to[part])[i] = static_cast<const uint32_t*>(call.from[part])[i];
    for_the_host();
    if (lane_of_warp() == 0) *call.flag = call.number + (call.base ? *call.base : 0);
}

}  // namespace dali::gpu
