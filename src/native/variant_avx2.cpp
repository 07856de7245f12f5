#include "lanes_avx2.h"
#include "tiles.h"

const dali::Variant* dali::avx2_variant() {
    static const Variant variant = Kernels<Avx2<false>>::make("avx2");
    return &variant;
}
