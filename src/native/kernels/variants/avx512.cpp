#include "kernels/kernels.h"
#include "lanes/avx512.h"

const dali::Variant* dali::avx512_variant() {
    static const Variant variant = make_variant<Avx512<false>>("avx512");
    return &variant;
}
