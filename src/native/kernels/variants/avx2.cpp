#include "kernels/kernels.h"
#include "lanes/avx2.h"

const dali::Variant* dali::avx2_variant() {
    static const Variant variant = make_variant<Avx2<false>>("avx2");
    return &variant;
}
