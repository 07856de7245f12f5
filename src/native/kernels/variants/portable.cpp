#include "kernels/kernels.h"
#include "lanes/portable.h"

const dali::Variant* dali::portable_variant() {
    static const Variant variant = make_variant<Portable>("portable");
    return &variant;
}
