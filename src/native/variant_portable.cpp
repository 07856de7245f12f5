#include "lanes_portable.h"
#include "tiles.h"

const dali::Variant* dali::portable_variant() {
    static const Variant variant = Kernels<Portable>::make("portable");
    return &variant;
}
