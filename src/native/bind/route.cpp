#include "ops/route.h"

#include "bind/bind.h"
#include "threads/spent.h"

namespace dali {

void bind_route(nb::module_& m) {
    m.def("route", [](uintptr_t x, uintptr_t weight, Dtype dtype, int tokens, int hidden, int experts, int top_k, bool normalise,
                      uintptr_t logits, uintptr_t weights, Dtype weights_dtype, uintptr_t ids) {
        nb::gil_scoped_release unlocked;
        const Timed timed(Part::router);
        route({pointer<const void>(x), pointer<const void>(weight), dtype, tokens, hidden, experts, top_k, normalise,
               pointer<void>(logits), pointer<void>(weights), weights_dtype, pointer<int64_t>(ids)});
    });
}

}  // namespace dali
