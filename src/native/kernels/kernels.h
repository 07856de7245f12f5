// All kernels, over one set of lanes: a file in variants/ includes this once, compiled for its instruction set.
//
// What is compiled so may be used on CPUs that have that instruction set only. So everything here is a template over its lanes or
// always inlined: a function that two of these files shared would be linked once, in either's instructions.
#pragma once

#include "kernels/attention.h"
#include "kernels/norms_and_routers.h"
#include "kernels/recurrence.h"
#include "kernels/selective_scan.h"
#include "kernels/tiles.h"

namespace dali {

template <class V>
Variant make_variant(const char* name) {
    Variant variant{};
    variant.name = name;
    TileKernels<V>::put_into(variant);
    AttentionKernels<V>::put_into(variant);
    RowKernels<V>::put_into(variant);
    RecurrenceKernels<V>::put_into(variant);
    SelectiveScanKernels<V>::put_into(variant);
    return variant;
}

}  // namespace dali
